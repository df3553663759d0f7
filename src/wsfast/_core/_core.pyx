# cython: language_level=3, freethreading_compatible=False, boundscheck=False, wraparound=False
"""The fast core: Python objects on one side, wsf.h on the other. `_pure` defines what each function does."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from libc.limits cimport INT_MIN
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, ENOMEM, EPIPE
from libc.stdint cimport UINT32_MAX, uint8_t, uint32_t
from libc.string cimport memcpy, memmove, memset

from ._wsf cimport (
    WSF_KEY_SIZE,
    WSF_MAX_HEADER,
    wsf_buffer,
    wsf_frame_header,
    wsf_mask,
    wsf_send_many,
    wsf_send_masked,
)

from operator import itemgetter
from os import urandom


cdef extern from "Python.h":
    ctypedef struct PyTypeObject
    PyTypeObject *Py_TYPE(object)
    object PyObject_CallOneArg(object, object)

cdef enum:
    # Payloads from here on are masked with the GIL released: below, letting go of it costs more than it gives.
    NOGIL_MASK = 65536

cdef object position_of = itemgetter(0)
sends_directly = True

cdef object EMPTY = b""
cdef object ROUTE = "_wsfast_route"


# ---- Frames and masking


cdef bytes octets_of(data):
    """The octets of any buffer, in C order; those of bytes are not copied."""
    return <bytes>data if type(data) is bytes else memoryview(data).tobytes()


cdef bytes key_of(mask_key):
    cdef bytes key = octets_of(mask_key)

    if PyBytes_GET_SIZE(key) != WSF_KEY_SIZE:
        raise ValueError("mask must contain 4 bytes")
    return key


cdef void mask(uint8_t *dst, const uint8_t *src, size_t size, const uint8_t *key) noexcept:
    if size < NOGIL_MASK:
        wsf_mask(dst, src, size, key)
    else:
        with nogil:
            wsf_mask(dst, src, size, key)


def encode_frame(first, payload, mask_key=None):
    cdef uint8_t header[WSF_MAX_HEADER]
    cdef size_t header_size
    cdef bytes frame, data = octets_of(payload)
    cdef bytes key_bytes = None if mask_key is None else key_of(mask_key)
    cdef const uint8_t *key = NULL if key_bytes is None else <const uint8_t *>PyBytes_AS_STRING(key_bytes)
    cdef const uint8_t *source = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef size_t size = PyBytes_GET_SIZE(data)
    cdef uint8_t *out

    if not 0 <= first <= 255:
        raise ValueError(f"first octet of a frame must be in range(256), not {first}")
    header_size = wsf_frame_header(header, <uint8_t><int>first, size, key)
    frame = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(header_size + size))
    out = <uint8_t *>PyBytes_AS_STRING(frame)
    memcpy(out, header, header_size)
    if key == NULL:
        memcpy(out + header_size, source, size)
    else:
        mask(out + header_size, source, size, key)
    return frame


def apply_mask(data, mask_key):
    cdef bytes source = octets_of(data)
    cdef bytes key = key_of(mask_key)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(source))

    mask(
        <uint8_t *>PyBytes_AS_STRING(result),
        <const uint8_t *>PyBytes_AS_STRING(source),
        PyBytes_GET_SIZE(source),
        <const uint8_t *>PyBytes_AS_STRING(key),
    )
    return result


# ---- Fan-out: gather, send, settle


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


cdef class Batch:
    """Descriptors that are written to in one loop, in the order of their connections."""

    cdef int *fds
    cdef uint32_t *groups       # which of the encodings each one gets
    cdef Py_ssize_t *positions  # where each one's connection stands in the list
    cdef ssize_t *results       # what became of each: see wsf.h
    cdef size_t size, room
    cdef list encodings
    cdef uint32_t last          # index of the encoding that was added last

    def __cinit__(self):
        self.encodings = []

    def __dealloc__(self):
        PyMem_Free(self.fds)
        PyMem_Free(self.groups)
        PyMem_Free(self.positions)
        PyMem_Free(self.results)

    cdef int grow(self) except -1:
        cdef size_t room = max(64, 4 * self.room)

        self.fds = <int *>resized(self.fds, room * sizeof(int))
        self.groups = <uint32_t *>resized(self.groups, room * sizeof(uint32_t))
        self.positions = <Py_ssize_t *>resized(self.positions, room * sizeof(Py_ssize_t))
        self.results = <ssize_t *>resized(self.results, room * sizeof(ssize_t))
        self.room = room
        return 0

    cdef int add(self, int fd, Py_ssize_t position, encoding) except -1:
        cdef Py_ssize_t count = PyList_GET_SIZE(self.encodings)

        if self.size == self.room:
            self.grow()
        if count == 0 or <PyObject *>encoding != PyList_GET_ITEM(self.encodings, self.last):
            self.last = 0
            while self.last < count and <PyObject *>encoding != PyList_GET_ITEM(self.encodings, self.last):
                self.last += 1
            if self.last == count:
                self.encodings.append(encoding)
        self.fds[self.size] = fd
        self.groups[self.size] = self.last
        self.positions[self.size] = position
        self.size += 1
        return 0


cdef void *resized(void *memory, size_t size) except NULL:
    cdef void *result = PyMem_Realloc(memory, size)
    if result == NULL:
        raise MemoryError
    return result


cdef class Names:
    """The parts of a ConnectionLayout that gather asks for again and again."""

    cdef object send_in_progress, idle, state, open_state, expect_continuation, writes

    def __init__(self, layout):
        self.send_in_progress = layout.send_in_progress
        self.idle = layout.idle
        self.state = layout.state
        self.open_state = layout.open_state
        self.expect_continuation = layout.expect_continuation
        self.writes = layout.writes


cdef class Methods:
    """How to ask transports of one type: its methods, not bound to any of them, and what a TransportLayout says."""

    cdef object closing     # attribute; None to call the method
    cdef object is_closing, get_write_buffer_size
    cdef bint direct
    cdef object write       # if gather must call it; else None
    cdef tuple clear        # attributes of the transport that must be None

    def __init__(self, kind, layout):
        self.direct = layout.direct
        self.closing = layout.closing
        self.is_closing = kind.is_closing
        self.get_write_buffer_size = kind.get_write_buffer_size
        self.write = kind.write if layout.try_write else None
        self.clear = layout.clear


cdef class Route:
    """What holds for a connection as long as it is open: asked once, kept in an attribute of the connection.

    It keeps the objects that it was made of, so that the transport whose descriptor it knows is the one that it asks.
    """

    cdef Names names
    cdef Methods methods    # of the transport; None if the connection must always be sent to by its own methods
    cdef object protocol, loop, transport
    cdef object gate        # what tells whether something is being sent; None if the connection does
    cdef object encoder     # what compresses messages; None if nothing does
    cdef int fd
    cdef bint masked
    cdef bint tells         # whether `quiet` is cleared whenever the connection may have changed
    cdef public bint quiet  # whether a frame may be written to the descriptor, without any further question


cdef bint has_replaced(owner, methods) except -1:
    """Whether an object has other methods than those of its class."""
    for name, function in methods.items():
        if getattr(getattr(owner, name), "__func__", None) is not function:
            return True
    return False


cdef dict all_methods = {}


cdef Methods methods_of(kind, layout):
    methods = all_methods.get(kind)
    if methods is None:
        methods = all_methods[kind] = Methods(kind, layout)
    return methods


cdef Route route_of(connection, protocol, layout, Names names, transport_layouts):
    """Make the route of an open connection."""
    cdef Route route = Route.__new__(Route)

    route.names = names
    route.protocol = protocol
    route.loop = getattr(connection, layout.loop)
    route.transport = getattr(connection, layout.transport)
    if layout.gate is not None:
        route.gate = getattr(connection, layout.gate)
    route.masked = layout.masked
    route.tells = layout.tells
    transport_layout = transport_layouts(type(route.transport))
    if (
        transport_layout is None
        or (layout.debug is not None and getattr(protocol, layout.debug) is not False)
        or has_replaced(connection, layout.methods)
        or has_replaced(protocol, layout.protocol_methods)
        or has_replaced(route.transport, transport_layout.methods)
    ):
        return route
    encoder = layout.encoder(connection if layout.extensions is None else getattr(protocol, layout.extensions))
    if encoder is False:
        return route
    route.encoder = encoder
    route.methods = methods_of(type(route.transport), transport_layout)
    if not transport_layout.direct:
        return route
    if transport_layout.descriptor is not None:
        route.fd = getattr(route.transport, transport_layout.descriptor)
    else:
        route.fd = route.transport.get_extra_info("socket").fileno()
    if route.fd < 0:
        route.methods = None
    return route


cdef extern from *:
    """
    /*
     * Hints to the cache, nothing else: gather chases pointers from cold object to cold object, and after a round of
     * system calls each of them is a miss. CPython keeps the attributes of an instance in an array apart from the
     * object before 3.13, and right behind it since. If it ever keeps them elsewhere, the hint is wasted, no more.
     */
    enum { WSFAST_LINE = 64, WSFAST_ATTRIBUTES = 4 /* lines: 32 attributes */ };

    /* The first line is really read: where a page is not in the TLB, processors may drop what is only a hint. */
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
        const char *values = ((const char *const *)object)[-3]; /* tagged with 1, or else a dict */
        values -= (uintptr_t)values & 1;
    #else
        const char *values = ((const char *const *)object)[-4];
    #endif
        if (values != NULL)
            wsfast_fetch(values, WSFAST_ATTRIBUTES);
    #endif
    }
    """
    void wsfast_fetch_object(object, int)
    void wsfast_fetch_attributes(object)


cdef enum:
    AHEAD = 32  # connections that are fetched into the cache at a time
    TRANSPORT_LINES = 5  # cache lines in which uvloop's transports keep what is asked of them
    ENCODER_LINES = 2


cdef int warm(list connections, Py_ssize_t start, Py_ssize_t stop, PyTypeObject *kind) except -1:
    """Fetch what `look` is going to read of these connections, all at once rather than one miss after the other.

    `kind` is the one type whose attributes may be read: that of another one's may run any code.
    """
    cdef PyObject *routes[AHEAD]
    cdef Py_ssize_t i

    for i in range(start, stop):
        wsfast_fetch_object(<object>PyList_GET_ITEM(connections, i), 2)
    for i in range(start, stop):
        wsfast_fetch_attributes(<object>PyList_GET_ITEM(connections, i))
    for i in range(start, stop):
        routes[i - start] = NULL
        if Py_TYPE(<object>PyList_GET_ITEM(connections, i)) == kind:
            route = getattr(<object>PyList_GET_ITEM(connections, i), ROUTE, None)
            if type(route) is Route:
                routes[i - start] = <PyObject *>route  # borrowed: nothing runs here that could end it
                wsfast_fetch_object(route, 2)
    for i in range(stop - start):
        if routes[i] != NULL and (<Route>routes[i]).quiet:
            wsfast_fetch_object((<Route>routes[i]).encoder, ENCODER_LINES)
            routes[i] = NULL
        if routes[i] != NULL:
            wsfast_fetch_object((<Route>routes[i]).protocol, 2)
            wsfast_fetch_object((<Route>routes[i]).transport, TRANSPORT_LINES)
            wsfast_fetch_object((<Route>routes[i]).encoder, ENCODER_LINES)
            wsfast_fetch_object((<Route>routes[i]).gate, 1)
    for i in range(stop - start):
        if routes[i] != NULL:
            wsfast_fetch_attributes((<Route>routes[i]).gate)
            wsfast_fetch_attributes((<Route>routes[i]).protocol)
            wsfast_fetch_attributes((<Route>routes[i]).transport)
    return 0


cdef enum Verdict:
    DIRECT      # a frame may be written to the descriptor right now
    TRANSPORT   # the transport must be given the frame
    CONNECTION  # the connection must be given the message: the ordinary path


cdef object is_closing(Methods methods, transport):
    if methods.closing is not None:
        return getattr(transport, methods.closing)
    return PyObject_CallOneArg(methods.is_closing, transport)


cdef Verdict look(Route route, connection) except *:
    """Ask an open connection what may have changed since the last time."""
    cdef Names names = route.names
    cdef Methods methods = route.methods

    if (
        methods is None
        or getattr(connection if route.gate is None else route.gate, names.send_in_progress) is not names.idle
        or (names.expect_continuation is not None and getattr(route.protocol, names.expect_continuation) is not False)
        or (names.writes is not None and PyList_GET_SIZE(<list?>getattr(route.protocol, names.writes)) != 0)
        or is_closing(methods, route.transport) is not False
    ):
        return CONNECTION
    if not methods.direct or PyObject_CallOneArg(methods.get_write_buffer_size, route.transport) != 0:
        return TRANSPORT
    for name in methods.clear:
        if getattr(route.transport, name) is not None:
            return TRANSPORT
    if methods.write is not None:
        try:
            methods.write(route.transport, EMPTY)
        except Exception:
            return TRANSPORT  # which will raise the same once more, where it is reported
    route.quiet = route.tells
    return DIRECT


cdef class FanOut:
    """A message on its way through gather, send and settle."""

    cdef list connections
    cdef object message
    cdef Batch plain, masked
    cdef list frames    # of the plain ones
    cdef bytes keys     # of the masked ones, WSF_KEY_SIZE octets each
    cdef Py_ssize_t stop, sent, skipped
    cdef bint encodes   # while an encoding is being chosen
    cdef list cut, waiting, ordinary, lost

    def __init__(self, connections, message, cut):
        self.connections = connections
        self.message = message
        self.plain = Batch.__new__(Batch)
        self.masked = Batch.__new__(Batch)
        self.cut = cut
        self.waiting = []
        self.ordinary = []
        self.lost = []

    cdef int gather(self, Py_ssize_t start, layouts, transport_layouts, running_loop) except -1:
        """Look at each connection once; stop at the first that must wait until those ahead of it have been sent to."""
        cdef Py_ssize_t size = PyList_GET_SIZE(self.connections)
        cdef uint32_t batch = seen.new_batch()
        cdef PyTypeObject *kind = NULL
        cdef Names names = None
        cdef Route route
        cdef Verdict verdict
        cdef object layout = None
        cdef object plain = self.message.plain
        cdef object encoding_for = self.message.encoding_for

        self.stop = start
        while self.stop < size:
            connection = <object>PyList_GET_ITEM(self.connections, self.stop)
            if Py_TYPE(connection) != kind:
                layout = layouts(type(connection))
                if layout is None:
                    break
                kind = Py_TYPE(connection)
                names = Names(layout)
            if (self.stop - start) % AHEAD == 0:
                warm(self.connections, self.stop, min(size, self.stop + AHEAD), kind)
            route = getattr(connection, ROUTE, None)
            if route is not None and route.quiet and route.loop is running_loop:
                verdict = DIRECT
            else:
                protocol = getattr(connection, layout.protocol) if route is None else route.protocol
                if route is None and type(protocol) is not layout.protocol_type:
                    break
                if getattr(protocol, names.state) is not names.open_state:
                    self.skipped += 1
                    self.stop += 1
                    continue
                # Ahead of all that changes something: the connection may be that of another thread.
                if (getattr(connection, layout.loop) if route is None else route.loop) is not running_loop:
                    break
                if route is None:
                    route = route_of(connection, protocol, layout, names, transport_layouts)
                    setattr(connection, ROUTE, route)
                verdict = look(route, connection)
            if verdict == CONNECTION:
                self.ordinary.append(self.stop)
            elif verdict == TRANSPORT:
                self.waiting.append((self.stop, route.encoder))
            elif not seen.add(route.fd, batch):
                break  # a duplicate: what may be cut off from its first frame must go out before the second
            else:
                self.encodes = True
                encoding = plain if route.encoder is None else PyObject_CallOneArg(encoding_for, route.encoder)
                (self.masked if route.masked else self.plain).add(route.fd, self.stop, encoding)
                self.encodes = False
            self.stop += 1
        return 0

    cdef int send(self) except -1:
        """Offer each gathered descriptor its frame."""
        cdef wsf_buffer *buffers = NULL     # the plain frames, and behind them the payloads of the masked ones
        cdef wsf_buffer *payloads
        cdef uint8_t *firsts = NULL
        cdef const uint8_t *keys = NULL
        cdef uint8_t *scratch = NULL
        cdef size_t i, longest = 0
        cdef size_t plain_count = PyList_GET_SIZE(self.plain.encodings)
        cdef size_t masked_count = PyList_GET_SIZE(self.masked.encodings)
        cdef const uint32_t *plain_groups = self.plain.groups if plain_count > 1 else NULL

        # Whatever runs code of Python's comes before the first byte is out: a frame that was cut off must reach settle.
        self.frames = [encoding.frame for encoding in self.plain.encodings]
        if masked_count:
            self.keys = urandom(self.masked.size * WSF_KEY_SIZE)
            keys = <const uint8_t *>PyBytes_AS_STRING(self.keys)
        try:
            buffers = <wsf_buffer *>resized(NULL, (plain_count + masked_count + 1) * sizeof(wsf_buffer))
            payloads = buffers + plain_count
            firsts = <uint8_t *>resized(NULL, masked_count + 1)
            for i in range(plain_count):
                buffers[i] = buffer_of(self.frames[i])
            for i in range(masked_count):
                encoding = self.masked.encodings[i]
                firsts[i] = encoding.first
                payloads[i] = buffer_of(encoding.payload)
                longest = max(longest, payloads[i].size)
            if masked_count:
                scratch = <uint8_t *>resized(NULL, WSF_MAX_HEADER + longest)
            with nogil:
                self.sent += wsf_send_many(self.plain.fds, plain_groups, self.plain.size, buffers, self.plain.results)
                self.sent += wsf_send_masked(
                    self.masked.fds, keys, self.masked.groups, self.masked.size, firsts, payloads, scratch,
                    self.masked.results
                )
        finally:
            PyMem_Free(buffers)
            PyMem_Free(firsts)
            PyMem_Free(scratch)
        return 0

    cdef int settle(self) except -1:
        """List what the kernels did not take."""
        cdef size_t i

        if self.sent == <Py_ssize_t>(self.plain.size + self.masked.size):
            return 0
        try:
            for i in range(self.plain.size):
                self.leave(self.plain.positions[i], self.frames[self.plain.groups[i]], self.plain.results[i])
            for i in range(self.masked.size):
                encoding = self.masked.encodings[self.masked.groups[i]]
                if self.masked.results[i] != masked_size(encoding):
                    key = self.keys[i * WSF_KEY_SIZE:(i + 1) * WSF_KEY_SIZE]
                    frame = encode_frame(encoding.first, encoding.payload, key)
                    self.leave(self.masked.positions[i], frame, self.masked.results[i])
            self.waiting.sort(key=position_of)
        except BaseException:  # out of memory, or a signal handler
            self.abandon(self.plain, [len(frame) for frame in self.frames])
            self.abandon(self.masked, [masked_size(encoding) for encoding in self.masked.encodings])
            raise
        return 0

    cdef int abandon(self, Batch batch, list sizes) except -1:
        """Abort the connections on which a frame was cut off, since the end of which is lost."""
        cdef Route route
        cdef size_t i

        for i in range(batch.size):
            if 0 < batch.results[i] < <ssize_t>sizes[batch.groups[i]]:
                route = getattr(self.connections[batch.positions[i]], ROUTE)
                route.quiet = False
                route.transport.abort()
        return 0

    cdef int leave(self, Py_ssize_t position, bytes frame, ssize_t result) except -1:
        """List one frame unless the kernel took it all."""
        cdef Route route

        if result == PyBytes_GET_SIZE(frame):
            return 0
        route = getattr(self.connections[position], ROUTE)
        route.quiet = False
        if result > 0:
            self.cut.append((position, memoryview(frame)[result:]))
            return 0
        # Nothing was taken: EAGAIN, or an error that the transport will meet in its turn.
        if route.encoder is not None:
            self.message.take_back(route.encoder)
        self.waiting.append((position, route.encoder))
        # These tell that something was not to be had right now; EPIPE is told again and again.
        if result not in (0, -EAGAIN, -EINTR, -EPIPE, -ENOBUFS, -ENOMEM):
            self.lost.append((position, -result))
        return 0


cdef wsf_buffer buffer_of(bytes data) except *:
    return wsf_buffer(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef ssize_t masked_size(encoding) except -1:
    """Size of a frame of a client."""
    cdef uint8_t header[WSF_MAX_HEADER]
    cdef const uint8_t *key = [0, 0, 0, 0]
    cdef size_t size = PyBytes_GET_SIZE(<bytes?>encoding.payload)
    return <ssize_t>(wsf_frame_header(header, 0, size, key) + size)


def fan_out(
    list connections not None, Py_ssize_t start, message, layouts, transport_layouts, running_loop, list cut not None
):
    cdef FanOut batch = FanOut(connections, message, cut)

    try:
        batch.gather(start, layouts, transport_layouts, running_loop)
    except Exception:
        if batch.encodes:  # nothing has been sent yet
            raise
        # Whatever is odd about the connection at which it stopped, the ordinary path will meet and report it.
    batch.send()
    batch.settle()
    return batch.stop, batch.sent, batch.skipped, batch.waiting, batch.ordinary, batch.lost


include "table.pxi"
