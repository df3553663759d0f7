# ---- What is written in one loop


@cython.no_gc_clear  # threads may be reading the frames until it is deallocated
cdef class Sends:
    """Descriptors that are written to in one loop, in this order or by several threads, and what each is sent."""

    cdef int *fds
    cdef uint32_t *groups       # what each one is sent
    cdef Py_ssize_t *places     # of each one's connection: its position in the list, or its slot
    cdef uint32_t *rows         # of each one's peer, among those that are ready, whether it is or not
    cdef ssize_t *results       # what became of each: see wsf.h
    cdef size_t size, room
    # Of each group.
    cdef list encodings, messages
    cdef list data              # frames, or payloads if they are masked for each
    cdef wsf_buffer *buffers
    cdef uint8_t *firsts
    cdef size_t group_room
    cdef size_t largest         # octets of the largest frame
    cdef size_t files           # groups up to the last one that has a file
    cdef int opener             # process that has opened them
    cdef list before, after     # what windows held, and hold then; None if that is the same
    cdef uint32_t *receivers    # how many there are
    cdef dict index             # groups by node and by what the window holds
    cdef uint32_t last_node, last_group
    cdef PyObject *last_window
    # Of frames that are masked.
    cdef const uint8_t *keys
    cdef uint8_t *scratch
    cdef size_t scratch_size
    cdef unsigned scratch_rooms
    # Of threads.
    cdef wsf_sends call
    cdef bint begun
    cdef size_t offered
    cdef object done            # what owns the descriptor that is told
    cdef list kept              # without a GIL, connections that another thread might free while they are sent to

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
        """Add all connections of a collection that are ready; return its size.

        The others, with their places, are put into `left`. Returns 0, and has added none, if these are many, or not of
        the type `kind`, which is the one whose attributes may be read, or must wait for those ahead of them.

        No code of Python's runs: the collection stays as it is, and all that it holds stays alive.
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
        """Return what those are sent in a broadcast whose windows hold this."""
        if PyList_GET_SIZE(self.encodings) == 0 or self.last_window != <PyObject *>window:
            self.new_group(0, window, message, masked)
        return self.last_group

    cdef int new_group(self, uint32_t node, window, message, bint masked) except -1:
        """Choose what those at a node are sent whose windows hold this; None for no compression."""
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
        """Have what windows hold now know by how many it is held. No code of Python's runs."""
        cdef size_t i

        self.count()
        for i in range(PyList_GET_SIZE(self.data)):
            before, after = self.before[i], self.after[i]
            if isinstance(before, WindowBase) and isinstance(after, WindowBase):
                move_receivers(<WindowBase>before, <WindowBase>after, self.receivers[i])

    cdef void open_files(self, size_t expected) noexcept:
        """Put large frames into files, if many enough are sent them.

        Where threads begin while connections are still being gathered, all get the same frame, and `expected` says how
        many there may be.
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
        """Close the files of large frames, in the process that has opened them: another may have reused descriptors."""
        cdef size_t i

        if self.files and self.opener == getpid():
            for i in range(self.files):
                if self.buffers[i].file:
                    close(self.buffers[i].file)
                    self.buffers[i].file = 0
        self.files = 0

    cdef bint begin(self, size_t expected) noexcept:
        """Have threads send, if there are any; there must be room for all, and for all groups, from now on."""
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
        """Have threads send what is there so far, if there are any."""
        if self.size > self.offered and (self.begun or self.begin(self.room)):
            self.offered = self.size
            wsf_offer(self.size)

    cdef bint detach(self, done, int fd) except -1:
        """Have threads send all while the caller goes on; the descriptor, which `done` owns, is told when they have."""
        self.done = done
        if self.begin(self.size):
            if wsf_detach(&self.call, self.size, fd):
                self.offered = self.size
                return True
            wsf_finish(&self.call, 0)
            self.begun = False
        return False

    cdef size_t send(self, bint threaded) noexcept:
        """Send all; return how many were taken whole."""
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
    """Whether a connection that is not ready can be gathered after all others. No code of Python's runs.

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
    """The descriptors gathered in one batch: one mark for each, told from those of older batches by its number."""

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


cdef bint tells_loss(ssize_t result) noexcept:
    """Whether a result is an error that the kernel does not tell again, and not to the transport."""
    # The others tell that something was not to be had right now; EPIPE is told again and again.
    return result < 0 and result not in (-EAGAIN, -EINTR, -EPIPE, -ENOBUFS, -ENOMEM)


cdef object window_of(Peer peer):
    """Return what a peer's window holds; None if its messages are not compressed."""
    if peer.encoder is None:
        return None
    if fd_of(peer.row) >= 0:
        return window_in(peer.row)
    return (<EncoderBase>peer.encoder).state


cdef ssize_t masked_size(encoding) except -1:
    """Size of a frame of a client."""
    cdef uint8_t header[WSF_MAX_HEADER]
    cdef const uint8_t *key = [0, 0, 0, 0]
    cdef size_t size = PyBytes_GET_SIZE(<bytes?>encoding.payload)
    return <ssize_t>(wsf_frame_header(header, 0, size, key) + size)
