# ---- Peers that are ready, in dense arrays. They are found by the addresses of their connections


cdef extern from *:
    """
    static int wsfast_keep(PyObject *object, void *kept)
    {
        *(PyObject **)kept = object;
        return 0;
    }

    /* The object that stores the items of a collection, and must be locked to read them: itself, or a view's dict. */
    static PyObject *wsfast_storage(PyObject *collection)
    {
        PyObject *storage = collection;
        if (Py_IS_TYPE(collection, &PyDictValues_Type) || Py_IS_TYPE(collection, &PyDictKeys_Type))
            Py_TYPE(collection)->tp_traverse(collection, wsfast_keep, &storage); /* it refers to one object only */
        return storage;
    }

    /*
     * Get the next items of a collection, in the order of iteration. The references are borrowed, and no item is
     * touched. Returns the number of items, or -1 if it is unknown how the collection stores them. No Python code runs.
     */
    static Py_ssize_t wsfast_items(PyObject *collection, Py_ssize_t *cursor, PyObject **items, Py_ssize_t room)
    {
        Py_ssize_t n = 0;
        if (PyList_CheckExact(collection) || PyTuple_CheckExact(collection)) {
            for (; n < room && *cursor < PySequence_Fast_GET_SIZE(collection); ++*cursor)
                items[n++] = PySequence_Fast_ITEMS(collection)[*cursor];
        } else if (Py_IS_TYPE(collection, &PySet_Type) || Py_IS_TYPE(collection, &PyFrozenSet_Type)) {
            const PySetObject *set = (const PySetObject *)collection;
            for (; n < room && *cursor <= set->mask; ++*cursor) {
                const setentry *entry = &set->table[*cursor];
                if (entry->key != NULL && entry->hash != -1) /* -1: an item that was removed */
                    items[n++] = entry->key;
            }
        } else {
            PyObject *dict, *key, *value;
            const int values = Py_IS_TYPE(collection, &PyDictValues_Type);
            dict = wsfast_storage(collection);
            if (!PyDict_CheckExact(dict))
                return -1;
            while (n < room && PyDict_Next(dict, cursor, &key, &value))
                items[n++] = values ? value : key;
        }
        return n;
    }

    /* Multiplied, because addresses of objects that were created one after the other differ in a few bits only. */
    static inline uint32_t wsfast_hash(const void *address, int bits)
    {
        return (uint32_t)((uint64_t)(uintptr_t)address * 0x9E3779B97F4A7C15u >> (64 - bits));
    }

    #define wsfast_prefetch(address) __builtin_prefetch(address)
    """
    PyObject *wsfast_storage(object)
    Py_ssize_t wsfast_items(object, Py_ssize_t *, PyObject **, Py_ssize_t)
    uint32_t wsfast_hash(const void *, int)
    void wsfast_prefetch(const void *)


cdef struct Row:
    int fd              # descriptor of a peer that is ready; else -1
    uint32_t window     # if ready, the index of its window, 0 for no compression; in a free row, the next free row


cdef struct Key:
    PyObject *connection    # of a peer that is ready, which keeps the connection alive; else NULL
    PyObject *loop          # event loop of the peer


cdef enum:
    OWN_ENCODER = 1     # the connection has an encoder of its own, which is dropped when the window changes
    UNDER_WAY = 2       # threads are sending to it, or have sent, while the event loop continues


cdef class ReadyPeers:
    """The state of peers that are ready, of all event loops, that sending needs.

    A peer that has a descriptor has a *row* for as long as it lives. Row 0 belongs to no peer. While the peer is ready,
    its row contains its descriptor and its window, and the row can be found by the address of the connection. The peer
    keeps the connection alive meanwhile. So the connection cannot be freed, and its address reused, before the row can
    no longer be found.

    The lock is held for each access to one of the arrays, because another thread may make them grow.
    """

    cdef Row *rows
    cdef Key *keys
    cdef PyObject **peers       # borrowed; NULL for a free row
    cdef uint8_t *flags
    cdef uint32_t size, room, free
    cdef uint32_t *buckets      # hash table of rows by address of the connection, with linear probing; 0 for none
    cdef int bits               # base-2 logarithm of the number of buckets, of which at most half are in use
    cdef uint32_t count
    # The windows, each with the number of rows that have it.
    cdef list windows
    cdef dict window_indexes
    cdef list free_windows
    cdef uint32_t *window_counts
    cdef size_t window_room

    def __cinit__(self):
        self.windows = [None]
        self.window_indexes = {}
        self.free_windows = []
        self.make_room_for_row()
        self.rows[0] = Row(-1, 0)
        self.keys[0] = Key(NULL, NULL)
        self.peers[0] = NULL
        self.size = 1
        self.rebuild(8)

    # ---- Rows

    cdef int make_room_for_row(self) except -1:
        cdef uint32_t room

        if self.free == 0 and self.size == self.room:
            room = max(<uint32_t>64, 2 * self.room)
            self.rows = <Row *>resized(self.rows, room * sizeof(Row))
            self.keys = <Key *>resized(self.keys, room * sizeof(Key))
            self.peers = <PyObject **>resized(self.peers, room * sizeof(PyObject *))
            self.flags = <uint8_t *>resized(self.flags, room)
            self.room = room
        return 0

    cdef uint32_t add(self, Peer peer) except 0:
        """Give a peer a row."""
        cdef uint32_t row

        lock()
        try:
            self.make_room_for_row()
            if self.free:
                row = self.free
                self.free = self.rows[row].window
            else:
                row = self.size
                self.size += 1
            self.rows[row] = Row(-1, 0)
            self.flags[row] = 0
            self.keys[row] = Key(NULL, <PyObject *>peer.loop)
            self.peers[row] = <PyObject *>peer
        finally:
            unlock()
        return row

    cdef void remove(self, uint32_t row) noexcept:
        """Free the row of a peer that is not ready and is being deallocated."""
        lock()
        self.rows[row].window = self.free
        self.keys[row].loop = NULL
        self.peers[row] = NULL
        self.free = row
        unlock()

    cdef int offer(self, Peer peer, connection) except -1:
        """Make a peer ready: it is sent to without a check, and its window is kept in its row from now on."""
        cdef EncoderBase encoder
        cdef uint32_t window = 0
        cdef bint owns = False

        lock()
        try:
            if 2 * (self.count + 1) > <uint32_t>1 << self.bits:
                self.rebuild(self.bits + 1)
            if peer.encoder is not None:
                encoder = peer.encoder
                window = self.window_index(encoder.state)
                owns = encoder.encoder is not None
            # From here on, no call can raise an exception.
            if window:
                self.window_counts[window] += 1
            self.flags[peer.row] = OWN_ENCODER if owns else 0
            self.rows[peer.row] = Row(peer.fd, window)
            if not peer.masked:
                peer.found = connection
                self.insert(peer.row, <PyObject *>connection)
        finally:
            unlock()
        return 0

    cdef int withdraw(self, Peer peer) except -1:
        """Make a peer not ready: it is checked before it is sent to, and its window is kept in its encoder again."""
        cdef EncoderBase encoder
        cdef uint32_t index
        cdef object found  # kept until the lock is released, because dropping it may free the connection

        lock()
        try:
            if self.rows[peer.row].fd < 0:
                return 0  # another thread was faster
            index = self.rows[peer.row].window
            self.rows[peer.row] = Row(-1, 0)
            self.forget(peer.row)
            if index:
                encoder = peer.encoder
                window = self.windows[index]
                if encoder.state is not window:
                    encoder.state = window
                    encoder.encoder = None
                self.window_counts[index] -= 1
                self.forget_window(index)
            found = peer.found
            peer.found = None
        finally:
            unlock()
        return 0

    # ---- Connections that are ready, by their addresses

    cdef uint32_t find(self, PyObject *connection, PyObject *loop) noexcept:
        """Return the row of a connection, or 0 if it is not ready or belongs to another event loop."""
        cdef uint32_t mask = (<uint32_t>1 << self.bits) - 1
        cdef uint32_t bucket = wsfast_hash(connection, self.bits)
        cdef uint32_t row

        while True:
            row = self.buckets[bucket]
            if self.keys[row].connection == connection:
                return row if self.keys[row].loop == loop else 0
            if row == 0:
                return 0
            bucket = (bucket + 1) & mask

    cdef void fetch(self, PyObject **connections, Py_ssize_t count) noexcept:
        """Fetch the memory that `find()` will read into the cache."""
        cdef Py_ssize_t i
        cdef uint32_t row

        for i in range(count):
            wsfast_prefetch(&self.buckets[wsfast_hash(connections[i], self.bits)])
        for i in range(count):
            row = self.buckets[wsfast_hash(connections[i], self.bits)]
            wsfast_prefetch(&self.keys[row])
            wsfast_prefetch(&self.rows[row])

    cdef void insert(self, uint32_t row, PyObject *connection) noexcept:
        cdef uint32_t mask = (<uint32_t>1 << self.bits) - 1
        cdef uint32_t bucket = wsfast_hash(connection, self.bits)

        self.keys[row].connection = connection
        while self.buckets[bucket] and self.keys[self.buckets[bucket]].connection != connection:
            bucket = (bucket + 1) & mask
        self.count += self.buckets[bucket] == 0  # otherwise, the bucket is that of another peer of this connection
        self.buckets[bucket] = row

    cdef void forget(self, uint32_t row) noexcept:
        cdef uint32_t mask = (<uint32_t>1 << self.bits) - 1
        cdef uint32_t bucket, gap

        if self.keys[row].connection == NULL:
            return
        gap = wsfast_hash(self.keys[row].connection, self.bits)
        self.keys[row].connection = NULL
        while self.buckets[gap] != row:
            if self.buckets[gap] == 0:
                return
            gap = (gap + 1) & mask
        self.buckets[gap] = 0
        self.count -= 1
        # Move rows behind the gap so that no gap is between a row and the bucket where the search for it begins.
        bucket = (gap + 1) & mask
        while self.buckets[bucket]:
            first = wsfast_hash(self.keys[self.buckets[bucket]].connection, self.bits)
            if ((bucket - first) & mask) >= ((bucket - gap) & mask):
                self.buckets[gap] = self.buckets[bucket]
                self.buckets[bucket] = 0
                gap = bucket
            bucket = (bucket + 1) & mask

    cdef int rebuild(self, int bits) except -1:
        """Rebuild the hash table with 2**bits buckets."""
        cdef size_t size = <size_t>1 << bits, i
        cdef size_t old_size = <size_t>1 << self.bits if self.buckets != NULL else 0
        cdef uint32_t *old = self.buckets
        cdef uint32_t *buckets = <uint32_t *>resized(NULL, size * sizeof(uint32_t))

        memset(buckets, 0, size * sizeof(uint32_t))
        self.buckets = buckets
        self.bits = bits
        self.count = 0
        for i in range(old_size):
            if old[i]:
                self.insert(old[i], self.keys[old[i]].connection)
        PyMem_Free(old)
        return 0

    # ---- Windows

    cdef uint32_t window_index(self, window) except 0:
        """Return the index of a window. If the window is new, it gets one, and no row has it yet."""
        cdef size_t room
        cdef uint32_t index
        cdef PyObject *known = PyDict_GetItem(self.window_indexes, window)

        if known != NULL:
            return <uint32_t>(<object>known)
        if self.free_windows:
            index = self.free_windows[PyList_GET_SIZE(self.free_windows) - 1]
        else:
            index = <uint32_t>PyList_GET_SIZE(self.windows)
            if index >= self.window_room:
                room = max(64, 2 * self.window_room)
                self.window_counts = <uint32_t *>resized(self.window_counts, room * sizeof(uint32_t))
                self.window_room = room
            self.windows.append(None)
            self.free_windows.append(index)
        self.window_indexes[window] = index
        self.free_windows.pop()
        self.windows[index] = window
        self.window_counts[index] = 0
        return index

    cdef int forget_window(self, uint32_t index) except -1:
        """Forget a window if no row has it any more."""
        if self.window_counts[index] == 0:
            del self.window_indexes[self.windows[index]]
            self.windows[index] = None
            self.free_windows.append(index)
        return 0

    cdef int move_window(self, uint32_t row, window) except -1:
        """Note the new window of a peer, whether it is ready or not."""
        cdef EncoderBase encoder
        cdef uint32_t before, index

        lock()
        try:
            if self.rows[row].fd >= 0:
                index = self.window_index(window)
                before = self.rows[row].window
                self.window_counts[before] -= 1
                self.window_counts[index] += 1
                self.rows[row].window = index
                if self.flags[row] & OWN_ENCODER:
                    self.flags[row] &= ~OWN_ENCODER
                    (<EncoderBase>(<Peer>self.peers[row]).encoder).encoder = None
                self.forget_window(before)
            elif self.peers[row] != NULL:
                encoder = (<Peer>self.peers[row]).encoder
                encoder.state = window
                encoder.encoder = None
        finally:
            unlock()
        return 0


cdef ReadyPeers ready_peers = ReadyPeers()


cdef inline int fd_of(uint32_t row) noexcept:
    """Return the descriptor of a peer that is ready, or -1."""
    lock()
    cdef int fd = ready_peers.rows[row].fd
    unlock()
    return fd


cdef inline object window_in(uint32_t row):
    """Return the window of a peer that is ready; None if its messages are not compressed."""
    if not FREE_THREADED:
        return ready_peers.windows[ready_peers.rows[row].window]
    lock()
    window = ready_peers.windows[ready_peers.rows[row].window]
    unlock()
    return window


cdef inline PyObject *peer_in(uint32_t row) noexcept:
    """Return a peer, borrowed; NULL if it is gone, which only another thread can have caused."""
    lock()
    cdef PyObject *peer = ready_peers.peers[row]
    unlock()
    return peer
