# ---- Transports that encrypt: a frame is encrypted for many connections, then all of them are sent to


cdef enum:
    PART = 1 << 17  # octets to encrypt before sending: each connection has ciphertext of its own


cdef class EncryptedNames:
    """The parts of an EncryptedLayout that are used for each check."""

    cdef object state, open_state, transport, flush, errors
    cdef tuple clear

    def __init__(self, layout):
        self.state = layout.state
        self.open_state = layout.open_state
        self.transport = layout.transport
        self.flush = layout.flush
        self.errors = layout.errors
        self.clear = layout.clear


cdef class Encryption:
    """The TLS objects of one connection. Checking them runs no Python code."""

    cdef EncryptedNames names
    cdef Methods methods            # of the transport beneath
    cdef object protocol, transport
    cdef dict attributes            # of the protocol, which has too many for CPython's faster storage
    cdef object outgoing            # queue of encrypted data
    cdef object write, read

    cdef bint is_next(self) except -1:
        """Whether encrypted data may be written to the descriptor now."""
        if (
            PyDict_GetItem(self.attributes, self.names.state) != <PyObject *>self.names.open_state
            or PyDict_GetItem(self.attributes, self.names.transport) != <PyObject *>self.transport
            or getattr(self.transport, self.methods.closing) is not False
            or getattr(self.transport, self.methods.buffer)
        ):
            return False
        for name in self.methods.clear:
            if getattr(self.transport, name) is not None:
                return False
        return True

    cdef bint is_free(self) except -1:
        """Whether a frame that is encrypted now would be the next data on the wire."""
        try:
            for name in self.names.clear:
                if self.attributes[name]:
                    return False
            return not self.outgoing.pending and self.is_next()
        except Exception:
            return False  # the connection's own methods will fail in the same way, and that is reported


cdef Encryption encryption_of(transport, EncryptedNames names, layout, transport_layouts):
    """Return the `Encryption` of a transport; None if anything about it differs from its layout."""
    cdef Encryption encryption = Encryption.__new__(Encryption)

    try:
        protocol = getattr(transport, layout.protocol)
        if type(protocol) is not layout.protocol_type or has_replaced(protocol, layout.methods):
            return None
        beneath = getattr(protocol, layout.transport)
        known = transport_layouts(type(beneath))
        if known is None or None in (known.descriptor, known.closing, known.buffer):
            return None
        writer, (outgoing, kind) = protocol, layout.outgoing
        encryption.outgoing = getattr(protocol, outgoing)
        if has_replaced(beneath, known.methods) or type(encryption.outgoing) is not kind:
            return None
        for name, kind in layout.writer:
            writer = getattr(writer, name)
            if type(writer) is not kind:
                return None
        for name in (names.state, names.flush, *names.clear):
            getattr(protocol, name)
        for name in (known.descriptor, known.closing, known.buffer, *known.clear):
            getattr(beneath, name)
    except AttributeError:
        return None
    encryption.names = names
    encryption.methods = methods_of(type(beneath), known)
    encryption.protocol = protocol
    encryption.attributes = vars(protocol)
    encryption.transport = beneath
    encryption.write = writer.write
    encryption.read = encryption.outgoing.read
    return encryption


cdef class Encrypted:
    """See `_pure`."""

    cdef Batch batch
    cdef list left              # the waiting connections that have an Encryption
    cdef Py_ssize_t cursor, warmed
    cdef Sends frames           # its groups are the frames to encrypt
    cdef readonly list rests, doubtful

    def __init__(self, Batch batch not None):
        self.batch = batch
        self.frames = Sends.__new__(Sends)
        self.rests = []
        self.doubtful = []
        self.left = [item for item in batch.waiting if (<Peer>item[1]).encryption is not None]
        if self.left:
            batch.waiting = [item for item in batch.waiting if (<Peer>item[1]).encryption is None]

    def send(self):
        cdef Sends sends = Sends.__new__(Sends)
        cdef list made = []
        cdef bint spread = threaded(PyList_GET_SIZE(self.left) - self.cursor)
        cdef Py_ssize_t before

        if self.cursor == PyList_GET_SIZE(self.left):
            return False
        interrupt = None
        try:
            self.encrypt(made)
        except BaseException as exc:  # raised by a signal handler; data encrypted so far must leave all the same
            interrupt = exc
        # From here on, no Python code runs: an interrupt finds all of this done, or nothing.
        before = PyList_GET_SIZE(self.doubtful)
        for _, peer, _ in made:
            self.doubtful.append(peer)
        self.take(made, sends)
        self.batch.sent += <Py_ssize_t>sends.send(spread)
        self.note(made, sends)
        del self.doubtful[before:]
        if interrupt is not None:
            raise interrupt
        return True

    cdef int encrypt(self, list made) except -1:
        """Encrypt frames, up to PART octets, and list the connections that have one now."""
        cdef TickTable table = self.batch.table
        cdef Sends frames = self.frames
        cdef Encryption encryption
        cdef Py_ssize_t size = 0, place
        cdef uint32_t node = 0
        cdef Peer peer

        while self.cursor < PyList_GET_SIZE(self.left) and size < PART:
            if self.cursor >= self.warmed:
                self.warm()
            place, peer = self.left[self.cursor]
            self.cursor += 1
            if table is not None:
                # Encrypting lets other threads and signal handlers run.
                if not is_sent(table, place, peer):
                    continue
                node = table.nodes[1 - table.publishing][place]
            window = window_of(peer)
            if (
                PyList_GET_SIZE(frames.encodings) == 0
                or frames.last_node != node
                or frames.last_window != <PyObject *>window
            ):
                frames.new_group(node, window, self.batch.message if table is None else self.batch.message(node), False)
            encryption = peer.encryption
            if not encryption.is_free():
                self.leave_all(place, peer)
                continue
            data = <bytes>PyList_GET_ITEM(frames.data, frames.last_group)
            self.doubtful.append(peer)
            try:
                count = <Py_ssize_t>PyObject_CallOneArg(encryption.write, data)
            except encryption.names.errors:
                self.leave_all(place, peer)  # the transport will fail in the same way, and report it
            else:
                if count == PyBytes_GET_SIZE(data):
                    made.append((place, peer, frames.last_group))
                else:
                    self.leave(place, peer, frames.last_group, count)
                size += count
            self.doubtful.pop()
        return 0

    cdef int warm(self) except -1:
        """Fetch the memory that will be read for the next connections, all at once to overlap the cache misses."""
        cdef PyObject *encryptions[AHEAD]
        cdef Py_ssize_t count = min(AHEAD, PyList_GET_SIZE(self.left) - self.cursor), i
        cdef Encryption encryption

        for i in range(count):
            encryption = (<Peer>self.left[self.cursor + i][1]).encryption
            encryptions[i] = <PyObject *>encryption
            wsfast_fetch_object(encryption, 2)
        for i in range(count):
            encryption = <Encryption>encryptions[i]
            wsfast_fetch_object(encryption.attributes, 1)
            wsfast_fetch_object(encryption.transport, 1)
            wsfast_fetch_object(encryption.outgoing, 1)
            wsfast_fetch_object(encryption.write, 1)
        for i in range(count):
            encryption = <Encryption>encryptions[i]
            wsfast_fetch_keys(encryption.attributes)
            wsfast_fetch_attributes(encryption.transport)
        try:
            for i in range(count):
                encryption = <Encryption>encryptions[i]
                wsfast_fetch_object(getattr(encryption.transport, encryption.methods.buffer), 1)
                for name in encryption.names.clear:
                    wsfast_fetch_object(encryption.attributes[name], 1)
        except Exception:
            pass  # the same exception comes again where it matters
        self.warmed = self.cursor + count
        return 0

    cdef int leave_all(self, Py_ssize_t place, Peer peer) except -1:
        """Leave a whole frame to the transport, or to the connection's own methods if the transport is closing."""
        try:
            closing = is_closing(peer.methods, peer.transport)
        except Exception:
            closing = True  # the connection's own methods will fail in the same way, and that is reported
        if closing is False:
            self.batch.waiting.append((place, peer))
        else:
            self.batch.own.append(place if self.batch.table is None else (place, peer))
        return 0

    cdef int leave(self, Py_ssize_t place, Peer peer, uint32_t group, Py_ssize_t count) except -1:
        """Leave the rest of a frame to the transport, which encrypts it and sends all of the frame."""
        rest = memoryview(self.frames.data[group])[count:]
        self.batch.cut.append((place, peer, rest, self.frames.messages[group], messages_in(self.frames, group)))
        if self.batch.table is not None:
            self.batch.table.clear(place, 1 - self.batch.table.publishing)
        return 0

    cdef int take(self, list made, Sends sends) except -1:
        """Take the encrypted data, unless other code sent it meanwhile, or other data must leave before it."""
        cdef Encryption encryption
        cdef Py_ssize_t place, i
        cdef uint32_t group
        cdef Peer peer

        for i in range(PyList_GET_SIZE(made)):
            place, peer, group = made[i]
            encryption = peer.encryption
            if encryption.outgoing.pending and encryption.is_next():
                fd = getattr(encryption.transport, encryption.methods.descriptor)
                add_own(sends, fd, i, encryption.read())
            else:
                flush = getattr(encryption.protocol, encryption.names.flush)
                self.rests.append((place, peer, messages_in(self.frames, group), flush, ()))
        return 0

    cdef int note(self, list made, Sends sends) except -1:
        """Note that everything was sent. Bytes that the kernel did not take must leave: the transport gets them."""
        cdef TickTable table = self.batch.table
        cdef Encryption encryption
        cdef Py_ssize_t place
        cdef uint32_t group
        cdef ssize_t result
        cdef Peer peer
        cdef size_t i

        for place, peer, group in made:
            if table is not None and is_sent(table, place, peer):
                table.clear(place, 1 - table.publishing)
            after = self.frames.after[group]
            if after is not None:
                move_encoder(peer.encoder, after)
        for i in range(sends.size):
            result = sends.results[i]
            if result == <ssize_t>sends.buffers[i].size:
                continue
            place, peer, group = made[sends.places[i]]
            encryption = peer.encryption
            rest = memoryview(sends.data[i])[max(result, 0):]
            self.rests.append((place, peer, messages_in(self.frames, group), encryption.transport.write, (rest,)))
            if is_reported_once(result):
                self.batch.lost.append((place, peer, -result))
        return 0


cdef int move_encoder(EncoderBase encoder, window) except -1:
    """Note the new window of a receiver. No Python code runs."""
    if isinstance(encoder.state, WindowBase) and isinstance(window, WindowBase):
        move_receivers(<WindowBase>encoder.state, <WindowBase>window, 1)
    encoder.state = window
    encoder.encoder = None
    return 0


cdef bint is_sent(TickTable table, Py_ssize_t slot, Peer peer) except -1:
    """Whether a slot still belongs to a peer, and is still being sent something."""
    return table.peers[slot] is peer and table.nodes[1 - table.publishing][slot] != 0


cdef Py_ssize_t messages_in(Sends sends, uint32_t group) except -1:
    ends = sends.encodings[group].ends
    return 1 if ends is None else len(ends)


cdef int add_own(Sends sends, int fd, Py_ssize_t place, bytes data) except -1:
    """Add a connection that is sent data of its own, as a group with one receiver."""
    cdef size_t count = <size_t>PyList_GET_SIZE(sends.data)

    if count == sends.group_room:
        sends.group_room = max(64, 4 * sends.group_room)
        sends.buffers = <wsf_buffer *>resized(sends.buffers, sends.group_room * sizeof(wsf_buffer))
        sends.receivers = <uint32_t *>resized(sends.receivers, sends.group_room * sizeof(uint32_t))
    memset(&sends.buffers[count], 0, sizeof(wsf_buffer))
    sends.buffers[count].data = PyBytes_AS_STRING(data)
    sends.buffers[count].size = PyBytes_GET_SIZE(data)
    sends.before.append(None)
    sends.after.append(None)
    sends.data.append(data)
    return sends.add(fd, place, <uint32_t>count, 0)
