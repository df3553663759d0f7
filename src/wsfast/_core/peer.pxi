# ---- Cached state of a connection, and whether it may be written to


cdef object EMPTY = b""
cdef object PEER = "_wsfast_peer"

cpdef enum Verdict:
    CLOSED
    DIRECT
    TRANSPORT
    OWN


cdef class EncoderBase:
    """See `_pure`."""

    cdef public object state, encoder, peer


cdef class WindowBase:
    """See `_pure`."""

    cdef public Py_ssize_t count, expected

    def move_to(self, WindowBase window not None, Py_ssize_t receivers):
        move_receivers(self, window, receivers)


cdef void move_receivers(WindowBase before, WindowBase after, Py_ssize_t receivers) noexcept:
    before.count = max(before.count - receivers, 0)
    after.count += receivers
    after.expected = 0


cdef class Names:
    """The parts of a ConnectionLayout that are used for each check; created once for each layout."""

    cdef object send_in_progress, idle, state, open_state, expect_continuation, writes

    def __init__(self, layout):
        self.send_in_progress = layout.send_in_progress
        self.idle = layout.idle
        self.state = layout.state
        self.open_state = layout.open_state
        self.expect_continuation = layout.expect_continuation
        self.writes = layout.writes


cdef class EncryptedNames


cdef class Encryption


cdef class Methods:
    """How to check transports of one type: unbound methods of the type, and the contents of its TransportLayout."""

    cdef object closing     # attribute; None to call `is_closing`
    cdef object is_closing
    cdef object buffer      # attribute; None to call `get_write_buffer_size`, which is None if there is an attribute
    cdef object get_write_buffer_size
    cdef bint direct
    cdef object write       # method that must be called for the check; else None
    cdef tuple clear        # attributes of the transport that must be None
    cdef bint quiet         # whether none of the methods is a Python function, in which signal handlers may run
    cdef object descriptor  # attribute; None to use the socket
    cdef EncryptedNames encrypted   # None if nothing may be sent beneath the transport

    def __init__(self, kind, layout):
        self.direct = layout.direct
        self.descriptor = layout.descriptor
        self.encrypted = None if layout.encrypted is None else EncryptedNames(layout.encrypted)
        self.closing = layout.closing
        self.is_closing = layout.is_closing or kind.is_closing
        self.buffer = layout.buffer
        self.get_write_buffer_size = kind.get_write_buffer_size if layout.buffer is None else None
        self.write = kind.write if layout.try_write else None
        self.clear = layout.clear
        asked = [self.write, self.get_write_buffer_size, None if self.closing is not None else self.is_closing]
        self.quiet = not any(isinstance(method, FunctionType) for method in asked)


cdef dict all_names = {}
cdef dict all_methods = {}


cdef Names names_of(layout):
    names = all_names.get(layout)
    if names is None:
        names = all_names[layout] = Names(layout)
    return names


cdef Methods methods_of(kind, layout):
    methods = all_methods.get(kind)
    if methods is None:
        methods = all_methods[kind] = Methods(kind, layout)
    return methods


cdef bint has_replaced(owner, methods) except -1:
    """Whether some of these methods were replaced on the object itself."""
    for name, function in methods.items():
        if getattr(getattr(owner, name), "__func__", None) is not function:
            return True
    return False


# The garbage collector must not clear it: the connection must not be freed while it can be found by its address.
@cython.no_gc_clear
cdef class Peer:
    """See `_pure`."""

    cdef Names names
    cdef Methods methods        # of the transport; None if only the connection's own methods may send to it
    cdef readonly object protocol, transport, loop
    cdef Encryption encryption  # None if the transport does not encrypt, or if only the transport may encrypt
    cdef object gate            # object with the attribute that shows whether something is being sent; None: connection
    cdef readonly object encoder
    cdef readonly bint masked, protocol_free
    cdef bint reports, protocol_reports
    cdef bint quiet             # whether checking it runs no Python code
    cdef int fd
    cdef uint32_t row           # in `ready_peers`; 0 if the connection is never written to directly
    cdef readonly Py_ssize_t slot
    cdef TickTable table
    cdef object found           # the connection while it can be found by its address; keeps the address from reuse
    cdef public object connection, backlog, subscriptions, dispatcher, layout
    cdef object __weakref__

    def __init__(self, connection, layout, transport_layouts):
        self.slot = -1
        self.fd = -1
        self.layout = layout
        self.subscriptions = ()
        if layout is None:
            self.loop = connection.loop
            return
        self.names = names_of(layout)
        self.loop = getattr(connection, layout.loop)
        self.transport = getattr(connection, layout.transport)
        self.masked = layout.masked
        self.reports = layout.reports
        protocol = getattr(connection, layout.protocol)
        if type(protocol) is not layout.protocol_type:
            return
        self.protocol = protocol
        if layout.gate is not None:
            self.gate = getattr(connection, layout.gate)
        transport_layout = transport_layouts(type(self.transport))
        if (
            transport_layout is None
            or (layout.debug is not None and getattr(protocol, layout.debug) is not False)
            or has_replaced(connection, layout.methods)
            or has_replaced(protocol, layout.protocol_methods)
            or has_replaced(self.transport, transport_layout.methods)
        ):
            return
        encoder = layout.encoder(connection if layout.extensions is None else getattr(protocol, layout.extensions))
        if encoder is False:
            return
        if transport_layout.direct:
            if transport_layout.descriptor is not None:
                self.fd = getattr(self.transport, transport_layout.descriptor)
            else:
                self.fd = self.transport.get_extra_info("socket").fileno()
            if self.fd < 0:
                return
        self.encoder = <EncoderBase?>encoder if encoder is not None else None
        if self.encoder is not None and self.reports:
            (<EncoderBase>encoder).peer = ref(self)
        self.methods = methods_of(type(self.transport), transport_layout)
        self.quiet = self.methods.quiet and not self.reports
        if self.fd >= 0 and self.row == 0:
            self.row = ready_peers.add(self)
        if self.methods.encrypted is not None and not self.masked:
            self.encryption = encryption_of(
                self.transport, self.methods.encrypted, transport_layout.encrypted, transport_layouts
            )
        if (self.fd >= 0 or self.encryption is not None) and layout.watch is not None:
            layout.watch(protocol, ref(self))
            self.protocol_reports = True

    def __dealloc__(self):
        if self.row:
            if fd_of(self.row) >= 0:
                ready_peers.withdraw(self)
            ready_peers.remove(self.row)

    def check(self, connection):
        self.invalidate()
        verdict = check_peer(self, connection)
        if verdict == TRANSPORT and self.encryption is not None and is_closing(self.methods, self.transport):
            return OWN
        return verdict

    cpdef invalidate(self):
        self.protocol_free = False
        # Without a GIL, nothing is detached. And while another thread checks the peer, the peer's own thread may give
        # it another table.
        if not FREE_THREADED and self.table is not None:
            self.table.wait(self.slot)
        if fd_of(self.row) >= 0:
            ready_peers.withdraw(self)

    @property
    def ready(self):
        return fd_of(self.row) >= 0

    @property
    def direct(self):
        return self.fd >= 0


cdef Verdict check_peer(Peer peer, connection) except *:
    """Check the state of a connection that can change. If it reports changes, it may be ready afterwards."""
    if peer.protocol is None:
        return OWN
    if not is_open(peer, peer.protocol, peer.names):
        return CLOSED
    return check_open(peer, connection)


cdef bint is_open(Peer peer, protocol, Names names) except -1:
    """Whether a connection is open. It may have no peer yet."""
    return peer is not None and peer.protocol_free or getattr(protocol, names.state) is names.open_state


cdef Verdict check_open(Peer peer, connection) except *:
    """Check an open connection."""
    cdef Names names = peer.names
    cdef Methods methods = peer.methods

    if methods is None:
        return OWN
    if not peer.protocol_free:
        if (
            getattr(connection if peer.gate is None else peer.gate, names.send_in_progress) is not names.idle
            or (
                names.expect_continuation is not None
                and getattr(peer.protocol, names.expect_continuation) is not False
            )
            or (names.writes is not None and PyList_GET_SIZE(<list?>getattr(peer.protocol, names.writes)) != 0)
        ):
            return OWN
    if peer.encryption is not None:
        peer.protocol_free = peer.protocol_reports
        return TRANSPORT  # the transport is checked when the frame is encrypted
    if is_closing(methods, peer.transport) is not False:
        return OWN
    peer.protocol_free = peer.protocol_reports
    if not methods.direct or is_buffering(methods, peer.transport):
        return TRANSPORT
    for name in methods.clear:
        if getattr(peer.transport, name) is not None:
            return TRANSPORT
    if methods.write is not None:
        try:
            methods.write(peer.transport, EMPTY)
        except Exception:
            return TRANSPORT  # the real write will raise it again, and that is reported
    if peer.reports and fd_of(peer.row) < 0:
        if peer.transport.get_protocol() is not connection:
            return OWN  # the transport reports to another protocol, for example after loop.start_tls()
        ready_peers.offer(peer, connection)
    return DIRECT


cdef object is_closing(Methods methods, transport):
    if methods.closing is not None:
        return getattr(transport, methods.closing)
    return PyObject_CallOneArg(methods.is_closing, transport)


cdef object is_buffering(Methods methods, transport):
    if methods.buffer is not None:
        return getattr(transport, methods.buffer)
    return PyObject_CallOneArg(methods.get_write_buffer_size, transport)


cdef extern from *:
    """
    /*
     * These are only hints to the cache. Gather follows pointers from one cold object to another, and after a round of
     * system calls, each access is a cache miss. CPython stores the attributes of an instance in a separate array
     * before 3.13, and right behind the object since then. If it ever stores them elsewhere, the hint is useless but
     * harmless.
     */
    enum { WSFAST_LINE = 64, WSFAST_ATTRIBUTES = 4 /* lines: 32 attributes */, WSFAST_KEYS = 12 /* of 40 keys */ };

    /* The first line is really read: processors may drop a hint if its page is not in the TLB. */
    static inline void wsfast_fetch(const char *start, int lines) {
        (void)*(const volatile char *)start;
        for (int i = 1; i < lines; i++)
            __builtin_prefetch(start + i * WSFAST_LINE);
    }

    static inline void wsfast_fetch_object(PyObject *object, int lines) {
        wsfast_fetch((const char *)object, lines);
    }

    static inline void wsfast_fetch_attributes(PyObject *object) {
    #ifdef Py_TPFLAGS_MANAGED_DICT
        if (!PyType_HasFeature(Py_TYPE(object), Py_TPFLAGS_MANAGED_DICT))
            return;
    #if PY_VERSION_HEX >= 0x030D0000
        const char *values = (const char *)object;
    #elif PY_VERSION_HEX >= 0x030C0000
        const char *values = ((const char *const *)object)[-3]; /* tagged with 1; otherwise a dict */
        values -= (uintptr_t)values & 1;
    #else
        const char *values = ((const char *const *)object)[-4];
    #endif
        if (values != NULL)
            wsfast_fetch(values, WSFAST_ATTRIBUTES);
    #endif
    }

    static inline void wsfast_fetch_keys(PyObject *dict) {
        wsfast_fetch((const char *)((PyDictObject *)dict)->ma_keys, WSFAST_KEYS);
    }
    """
    void wsfast_fetch_object(object, int)
    void wsfast_fetch_attributes(object)
    void wsfast_fetch_keys(object)


cdef enum:
    AHEAD = 32  # connections that are fetched into the cache at a time
    TRANSPORT_LINES = 5  # cache lines in which uvloop's transports keep the state that is checked
    ENCODER_LINES = 1
    PEER_LINES = 3


cdef int warm(list connections, Py_ssize_t start, Py_ssize_t stop, PyTypeObject *kind) except -1:
    """Fetch the memory that `check_peer` will read for these connections, all at once to overlap the cache misses.

    `kind` is the one type whose attributes may be read: reading an attribute of another type may run any code.
    """
    cdef PyObject *peers[AHEAD]
    cdef Py_ssize_t i

    for i in range(start, stop):
        wsfast_fetch_object(<object>PyList_GET_ITEM(connections, i), 2)
    for i in range(start, stop):
        wsfast_fetch_attributes(<object>PyList_GET_ITEM(connections, i))
    for i in range(start, stop):
        peers[i - start] = NULL
        if Py_TYPE(<object>PyList_GET_ITEM(connections, i)) == kind:
            peer = getattr(<object>PyList_GET_ITEM(connections, i), PEER, None)
            if type(peer) is Peer:
                peers[i - start] = <PyObject *>peer  # borrowed: no code runs here that could free it
                wsfast_fetch_object(peer, PEER_LINES)
    warm_peers(peers, stop - start)
    return 0


cdef void warm_peers(PyObject **peers, Py_ssize_t count):
    """The same for peers that were fetched already; NULL for no peer."""
    cdef Py_ssize_t i

    for i in range(count):
        if peers[i] == NULL:
            continue
        wsfast_fetch_object((<Peer>peers[i]).encoder, ENCODER_LINES)
        if fd_of((<Peer>peers[i]).row) >= 0:
            peers[i] = NULL
            continue
        if (<Peer>peers[i]).encryption is None:
            wsfast_fetch_object((<Peer>peers[i]).transport, TRANSPORT_LINES)
        if not (<Peer>peers[i]).protocol_free:
            wsfast_fetch_object((<Peer>peers[i]).protocol, 2)
            wsfast_fetch_object((<Peer>peers[i]).gate, 1)
    for i in range(count):
        if peers[i] == NULL:
            continue
        if (<Peer>peers[i]).encryption is None:
            wsfast_fetch_attributes((<Peer>peers[i]).transport)
        if not (<Peer>peers[i]).protocol_free:
            wsfast_fetch_attributes((<Peer>peers[i]).gate)
            wsfast_fetch_attributes((<Peer>peers[i]).protocol)
