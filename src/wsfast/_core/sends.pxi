# ---- What is written in one loop


cdef class Sends:
    """Descriptors that are written to in one loop, in this order, and what each is sent."""

    cdef int *fds
    cdef uint32_t *groups       # what each one is sent
    cdef Py_ssize_t *places     # of each one's connection: its position in the list, or its slot
    cdef PyObject **peers       # peers whose own state moves on when all was taken, borrowed; else NULL
    cdef ssize_t *results       # what became of each: see wsf.h
    cdef size_t size, room
    # Of each group.
    cdef list encodings, messages
    cdef list before, after     # what windows held, and hold then; None if that is the same
    cdef dict index             # groups by node and by what the window holds
    cdef uint32_t last_node, last_group
    cdef PyObject *last_window

    def __cinit__(self):
        self.encodings = []
        self.messages = []
        self.before = []
        self.after = []
        self.index = {}

    def __dealloc__(self):
        PyMem_Free(self.fds)
        PyMem_Free(self.groups)
        PyMem_Free(self.places)
        PyMem_Free(self.peers)
        PyMem_Free(self.results)

    cdef int grow(self) except -1:
        cdef size_t room = max(64, 4 * self.room)

        self.fds = <int *>resized(self.fds, room * sizeof(int))
        self.groups = <uint32_t *>resized(self.groups, room * sizeof(uint32_t))
        self.places = <Py_ssize_t *>resized(self.places, room * sizeof(Py_ssize_t))
        self.peers = <PyObject **>resized(self.peers, room * sizeof(PyObject *))
        self.results = <ssize_t *>resized(self.results, room * sizeof(ssize_t))
        self.room = room
        return 0

    cdef int add(self, int fd, Py_ssize_t place, uint32_t group, Peer peer) except -1:
        if self.size == self.room:
            self.grow()
        self.fds[self.size] = fd
        self.places[self.size] = place
        self.groups[self.size] = group
        self.peers[self.size] = <PyObject *>peer if peer is not None else NULL
        self.size += 1
        return 0

    cdef int new_group(self, uint32_t node, window, message) except -1:
        """Choose what those at a node are sent whose windows hold this; None for no compression."""
        groups = self.index.setdefault(node, {})
        group = groups.get(window)
        if group is None:
            if window is None:
                encoding, after = message.plain, None
            else:
                encoding, after = message.choose(window)
            self.encodings.append(encoding)
            self.messages.append(message)
            self.before.append(window)
            self.after.append(None if after is window else after)
            group = groups[window] = PyList_GET_SIZE(self.encodings) - 1
        self.last_node = node
        self.last_window = <PyObject *>window  # `before` keeps it
        self.last_group = group
        return 0


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
