# ---- Sends that are done in one loop


@cython.no_gc_clear  # threads may be reading the frames until it is deallocated
cdef class Sends:
    """Descriptors to write to, in order or with several threads, and the data for each of them."""

    # For each descriptor.
    cdef int *fds
    cdef uint32_t *groups       # group: connections in the same group are sent the same data
    cdef Py_ssize_t *places     # place of the connection: its position in the list, or its slot
    cdef uint32_t *rows         # row of the peer in `ready_peers`, whether it is ready or not
    cdef ssize_t *results       # result: see wsf.h
    cdef size_t size, room
    # For each group.
    cdef list encodings, messages
    cdef list data              # frames; payloads if they are masked for each connection
    cdef wsf_buffer *buffers
    cdef uint8_t *firsts
    cdef size_t group_room
    cdef size_t largest         # octets of the largest frame
    cdef size_t files           # number of groups up to the last one that has a file
    cdef int opener             # process that opened the files
    cdef list before, after     # windows before and after; None after if the window does not change
    cdef uint32_t *receivers    # number of connections
    cdef dict index             # groups by node and window
    cdef uint32_t last_node, last_group
    cdef PyObject *last_window
    # For masked frames.
    cdef const uint8_t *keys
    cdef uint8_t *scratch
    cdef size_t scratch_size
    cdef unsigned scratch_rooms
    # For threads.
    cdef wsf_sends call
    cdef bint begun
    cdef size_t offered
    cdef object done            # owner of the descriptor that is notified
    cdef list kept              # without a GIL, connections that another thread might free during the send

    def __cinit__(self):
        self.encodings = []
        self.messages = []
        self.data = []
        self.before = []
        self.after = []
        self.index = {}
        if FREE_THREADED:
            self.kept = []

    def __dealloc__(self):
        if self.begun:
            wsf_finish(&self.call, self.offered)
        self.close_files()
        PyMem_Free(self.fds)
        PyMem_Free(self.groups)
        PyMem_Free(self.places)
        PyMem_Free(self.rows)
        PyMem_Free(self.results)
        PyMem_Free(self.buffers)
        PyMem_Free(self.firsts)
        PyMem_Free(self.receivers)

    cdef int reserve(self, size_t room) except -1:
        self.fds = <int *>resized(self.fds, room * sizeof(int))
        self.groups = <uint32_t *>resized(self.groups, room * sizeof(uint32_t))
        self.places = <Py_ssize_t *>resized(self.places, room * sizeof(Py_ssize_t))
        self.rows = <uint32_t *>resized(self.rows, room * sizeof(uint32_t))
        self.results = <ssize_t *>resized(self.results, room * sizeof(ssize_t))
        self.room = room
        return 0

    cdef int add(self, int fd, Py_ssize_t place, uint32_t group, uint32_t row) except -1:
        if self.size == self.room:
            self.reserve(max(64, 4 * self.room))
        self.fds[self.size] = fd
        self.places[self.size] = place
        self.groups[self.size] = group
        self.rows[self.size] = row
        self.size += 1
        return 0

    cdef Py_ssize_t add_ready(self, connections, dict left, PyTypeObject *kind, running_loop) except -1:
        """Add all connections of a collection that are ready; return the size of the collection.

        The other connections are put into `left`, by place. Returns 0, and adds none, if these are too many, or do not
        have the type `kind`, which is the only one whose attributes may be read, or must wait for earlier connections.

        No Python code runs: the collection does not change, and its items stay alive.
        """
        with cython.critical_section(<object>wsfast_storage(connections)):
            lock()
            try:
                return self.add_ready_locked(connections, left, kind, running_loop)
            finally:
                unlock()

    cdef Py_ssize_t add_ready_locked(self, connections, dict left, PyTypeObject *kind, running_loop) except -1:
        cdef PyObject *items[AHEAD]
        cdef Py_ssize_t most = PyObject_Size(connections) >> 2
        cdef Py_ssize_t cursor = 0, place = 0, count = AHEAD, i
        cdef uint32_t batch = seen.new_batch()
        cdef uint32_t row

        while count:
            count = wsfast_items(connections, &cursor, items, AHEAD)
            ready_peers.fetch(items, count)
            for i in range(count):
                if FREE_THREADED:
                    self.kept.append(<object>items[i])
                row = ready_peers.find(items[i], <PyObject *>running_loop)
                if row and not ready_peers.flags[row] & UNDER_WAY and seen.add(ready_peers.rows[row].fd, batch):
                    self.add(ready_peers.rows[row].fd, place + i, 0, row)
                elif not row and most and can_be_last(<object>items[i], kind, running_loop, batch):
                    left[place + i] = <object>items[i]
                    most -= 1
                else:
                    self.size = 0
                    return 0
            place += count
        return place

    cdef uint32_t group_of(self, window, message, bint masked) except? 0:
        """Return the group of connections with this window in a broadcast."""
        if PyList_GET_SIZE(self.encodings) == 0 or self.last_window != <PyObject *>window:
            self.new_group(0, window, message, masked)
        return self.last_group

    cdef int new_group(self, uint32_t node, window, message, bint masked) except -1:
        """Find or add the group of connections at a node with this window; None for no compression."""
        groups = self.index.setdefault(node, {})
        group = groups.get(window)
        if group is None:
            if window is None:
                encoding, after = message.plain, None
            else:
                encoding, after = message.choose(window)
            data = encoding.payload if masked else encoding.frame
            count = <size_t>PyList_GET_SIZE(self.data)
            if count == self.group_room:
                self.group_room = max(8, 2 * self.group_room)
                self.buffers = <wsf_buffer *>resized(self.buffers, self.group_room * sizeof(wsf_buffer))
                self.firsts = <uint8_t *>resized(self.firsts, self.group_room)
                self.receivers = <uint32_t *>resized(self.receivers, self.group_room * sizeof(uint32_t))
            self.buffers[count] = wsf_buffer(PyBytes_AS_STRING(<bytes?>data), PyBytes_GET_SIZE(data), 0)
            self.largest = max(self.largest, self.buffers[count].size)
            self.firsts[count] = encoding.first
            self.encodings.append(encoding)
            self.messages.append(message)
            self.before.append(window)
            self.after.append(None if after is window else after)
            self.data.append(data)
            group = groups[window] = count
        self.last_node = node
        self.last_window = <PyObject *>window  # `before` keeps it
        self.last_group = group
        return 0

    cdef void count(self) noexcept:
        """Count the receivers of each group."""
        cdef size_t i

        memset(self.receivers, 0, PyList_GET_SIZE(self.data) * sizeof(uint32_t))
        for i in range(self.size):
            self.receivers[self.groups[i]] += 1

    cdef void count_receivers(self) noexcept:
        """Update the numbers of receivers of the windows. No Python code runs."""
        cdef size_t i

        self.count()
        for i in range(PyList_GET_SIZE(self.data)):
            before, after = self.before[i], self.after[i]
            if isinstance(before, WindowBase) and isinstance(after, WindowBase):
                move_receivers(<WindowBase>before, <WindowBase>after, self.receivers[i])

    cdef void open_files(self, size_t expected) noexcept:
        """Put large frames into files, if they have enough receivers.

        If threads begin while connections are still being gathered, all of them get the same frame, and `expected` is
        the largest possible number of connections.
        """
        cdef size_t groups = <size_t>PyList_GET_SIZE(self.data), i

        if self.largest < file_size or expected < file_receivers or self.keys != NULL or self.files:
            return
        self.count()
        for i in range(groups):
            if self.buffers[i].size >= file_size and (groups == 1 or self.receivers[i] >= file_receivers):
                self.buffers[i].file = wsf_open_file(self.buffers[i].data, self.buffers[i].size)
                if self.buffers[i].file:
                    self.files = i + 1
        self.opener = getpid() if self.files else 0

    cdef void close_files(self) noexcept nogil:
        """Close the files of large frames, but only in the process that opened them: another may reuse descriptors."""
        cdef size_t i

        if self.files and self.opener == getpid():
            for i in range(self.files):
                if self.buffers[i].file:
                    close(self.buffers[i].file)
                    self.buffers[i].file = 0
        self.files = 0

    cdef bint begin(self, size_t expected) noexcept:
        """Start threads on this, if there are any. From now on, no array may grow."""
        self.open_files(expected)
        self.call = wsf_sends(
            self.fds,
            self.groups,
            self.buffers,
            self.results,
            self.keys,
            self.firsts,
            self.scratch,
            self.scratch_size,
            self.scratch_rooms,
            0,
        )
        self.begun = wsf_begin(&self.call)
        return self.begun

    cdef void offer(self) noexcept:
        """Let threads, if there are any, send to the connections added so far."""
        if self.size > self.offered and (self.begun or self.begin(self.room)):
            self.offered = self.size
            wsf_offer(self.size)

    cdef bint detach(self, done, int fd) except -1:
        """Let threads send everything while the caller continues; they notify `fd`, owned by `done`, when finished."""
        self.done = done
        if self.begin(self.size):
            if wsf_detach(&self.call, self.size, fd):
                self.offered = self.size
                return True
            wsf_finish(&self.call, 0)
            self.begun = False
        return False

    cdef size_t send(self, bint threaded) noexcept:
        """Send everything; return how many connections took their whole frame."""
        cdef const uint32_t *groups = self.groups if PyList_GET_SIZE(self.data) > 1 else NULL
        cdef size_t complete

        if self.size == 0:
            return 0
        threaded = self.begun or (threaded and self.begin(self.size))
        if not threaded:
            self.open_files(self.size)
        with nogil:
            if threaded:
                complete = wsf_finish(&self.call, self.size)
            elif self.keys != NULL:
                complete = wsf_send_masked(
                    self.fds, self.keys, self.groups, self.size, self.firsts, self.buffers, self.scratch, self.results
                )
            else:
                complete = wsf_send_many(self.fds, groups, self.size, self.buffers, self.results)
            self.close_files()
        self.begun = False
        self.count_receivers()
        return complete


cdef object first_of_several(connections):
    """Return the first connection; None if there is only one, or it is not known how the collection keeps them."""
    cdef PyObject *items[2]
    cdef Py_ssize_t cursor = 0

    with cython.critical_section(<object>wsfast_storage(connections)):
        return <object>items[0] if wsfast_items(connections, &cursor, items, 2) == 2 else None


cdef bint can_be_last(connection, PyTypeObject *kind, running_loop, uint32_t batch) except -1:
    """Whether a connection that is not ready can be gathered after all others. No Python code runs.

    `kind` is the one type whose attributes may be read.
    """
    if Py_TYPE(connection) != kind:
        return False
    peer = getattr(connection, PEER, None)
    return (
        type(peer) is Peer
        and (<Peer>peer).loop is running_loop
        and ((<Peer>peer).fd < 0 or seen.add((<Peer>peer).fd, batch))
    )


cdef class Seen:
    """The descriptors gathered in one batch. The mark of each is the number of the last batch that it was in."""

    cdef uint32_t *marks
    cdef Py_ssize_t size
    cdef uint32_t batch

    def __dealloc__(self):
        PyMem_Free(self.marks)

    cdef uint32_t new_batch(self) noexcept:
        if self.batch == UINT32_MAX:
            memset(self.marks, 0, self.size * sizeof(uint32_t))
            self.batch = 0
        self.batch += 1
        return self.batch

    cdef bint add(self, int fd, uint32_t batch) except -1:
        """Mark `fd`; False if it was marked in this batch already."""
        cdef uint32_t *marks
        cdef Py_ssize_t size

        if fd >= self.size:
            size = max(1024, 2 * fd)
            marks = <uint32_t *>PyMem_Realloc(self.marks, size * sizeof(uint32_t))
            if marks == NULL:
                raise MemoryError
            memset(marks + self.size, 0, (size - self.size) * sizeof(uint32_t))
            self.marks = marks
            self.size = size
        if self.marks[fd] == batch:
            return False
        self.marks[fd] = batch
        return True


cdef Seen seen = Seen()


cdef uint32_t new_batch() noexcept:
    lock()
    cdef uint32_t batch = seen.new_batch()
    unlock()
    return batch


cdef bint mark(int fd, uint32_t batch) except -1:
    """Mark `fd`; False if it was marked in this batch already."""
    lock()
    try:
        return seen.add(fd, batch)
    finally:
        unlock()


cdef bint is_reported_once(ssize_t result) noexcept:
    """Whether a result is an error that the kernel reports only once, so that the transport will not get it."""
    # The other errors report a temporary lack of something, except EPIPE, which the kernel reports each time.
    return result < 0 and result not in (-EAGAIN, -EINTR, -EPIPE, -ENOBUFS, -ENOMEM)


cdef object window_of(Peer peer):
    """Return the window of a peer; None if its messages are not compressed."""
    if peer.encoder is None:
        return None
    if fd_of(peer.row) >= 0:
        return window_in(peer.row)
    return (<EncoderBase>peer.encoder).state


cdef ssize_t masked_size(encoding) except -1:
    """Return the size of a masked frame."""
    cdef uint8_t header[WSF_MAX_HEADER]
    cdef const uint8_t *key = [0, 0, 0, 0]
    cdef size_t size = PyBytes_GET_SIZE(<bytes?>encoding.payload)
    return <ssize_t>(wsf_frame_header(header, 0, size, key) + size)
