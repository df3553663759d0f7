# ---- One batch: gather, send, and lists of what was not taken


cdef class Batch:
    """See `_pure`."""

    cdef readonly object connections    # by place: a list or a dict; None for slots of a tick table
    cdef TickTable table
    cdef size_t cursor      # cursor of the table after this batch
    cdef Sends plain, masked
    cdef bytes keys         # for the masked sends, WSF_KEY_SIZE octets each
    cdef readonly Py_ssize_t sent, stop
    cdef readonly bint done
    cdef size_t noted       # number of plain sends that have been noted
    cdef bint detached      # whether threads send, to the slots with the flag DETACHED
    cdef bint finishing     # whether the last sends are in progress, in a thread that has released the GIL
    cdef readonly list closed, cut, refused, waiting, own, lost
    cdef object message     # the encodings to send; for slots, a function that returns them for a node
    cdef dict left          # `connections`, if that has only those that were checked or did not take everything

    def __init__(self):
        self.plain = Sends.__new__(Sends)
        self.masked = Sends.__new__(Sends)
        self.closed = []
        self.cut = []
        self.refused = []
        self.waiting = []
        self.own = []
        self.lost = []

    def gather(self, connections, Py_ssize_t start, message, layouts, transport_layouts, running_loop):
        self.message = message
        if start == 0:
            if self.gather_ready(connections, message, layouts, running_loop):
                self.prepare()
                return
            connections = list(connections)
        self.connections = connections
        self.gather_each(connections, start, message, layouts, transport_layouts, running_loop)
        self.prepare()

    cdef bint gather_ready(self, connections, message, layouts, running_loop) except -1:
        """Gather a whole collection without touching any object of a connection that is ready.

        Returns False, and changes nothing, if the connections must be gathered one by one.
        """
        cdef Sends sends = self.plain
        cdef dict left = {}
        cdef Py_ssize_t place
        cdef Verdict verdict
        cdef Peer peer
        cdef uint32_t group
        cdef size_t i

        first = first_of_several(connections)
        try:
            layout = None if first is None else layouts(type(first))
        except Exception:
            return False
        if layout is None or not layout.reports:
            return False
        self.stop = sends.add_ready(connections, left, Py_TYPE(first), running_loop)
        if self.stop == 0:
            return False
        self.connections = self.left = left
        for i in range(sends.size):
            window = window_in(sends.rows[i])
            sends.groups[i] = sends.group_of(window, message, False)
        for place, connection in left.items():
            peer = getattr(connection, PEER)
            try:
                verdict = check_peer(peer, connection)
            except Exception:
                verdict = OWN  # the connection's own methods will fail in the same way, and that is reported
            if verdict == CLOSED:
                self.closed.append(place)
            elif verdict == OWN:
                self.own.append(place)
            elif verdict == TRANSPORT:
                self.waiting.append((place, peer))
            else:
                sends = self.masked if peer.masked else self.plain
                group = sends.group_of(window_of(peer), message, peer.masked)
                sends.add(peer.fd, place, group, peer.row)
        return True

    cdef int gather_each(
        self, list connections, Py_ssize_t start, message, layouts, transport_layouts, running_loop
    ) except -1:
        """Gather connections one by one."""
        cdef Py_ssize_t size = PyList_GET_SIZE(connections)
        cdef uint32_t batch = new_batch()
        cdef PyTypeObject *kind = NULL
        cdef Names names = None
        cdef Peer peer
        cdef Verdict verdict
        cdef object layout = None
        cdef bint encodes = False, overlaps = threaded(size - start)
        cdef Sends sends

        self.stop = start
        try:
            if overlaps:
                self.plain.reserve(size - start)
            while self.stop < size:
                connection = <object>PyList_GET_ITEM(connections, self.stop)
                if Py_TYPE(connection) != kind:
                    if kind != NULL and self.interrupts(&overlaps):
                        break
                    layout = layouts(type(connection))
                    if layout is None:
                        break
                    kind = Py_TYPE(connection)
                    names = names_of(layout)
                if (self.stop - start) % AHEAD == 0:
                    if overlaps:
                        self.plain.offer()
                    warm(connections, self.stop, min(size, self.stop + AHEAD), kind)
                peer = getattr(connection, PEER, None)
                if peer is not None and fd_of(peer.row) >= 0 and peer.loop is running_loop:
                    if peer.table is not None and peer.table.flags[peer.slot] & DETACHED:
                        if self.interrupts(&overlaps):
                            break
                        peer.table.wait(peer.slot)
                    verdict = DIRECT if fd_of(peer.row) >= 0 else check_open(peer, connection)
                else:
                    if (peer is None or not peer.quiet) and self.interrupts(&overlaps):
                        break
                    protocol = getattr(connection, layout.protocol) if peer is None else peer.protocol
                    if peer is None and type(protocol) is not layout.protocol_type:
                        break
                    if protocol is None or not is_open(peer, protocol, names):
                        if protocol is None:
                            break
                        self.closed.append(self.stop)
                        self.stop += 1
                        continue
                    # This comes before any change: the connection may belong to another thread.
                    if (getattr(connection, layout.loop) if peer is None else peer.loop) is not running_loop:
                        break
                    if peer is None:
                        peer = Peer(connection, layout, transport_layouts)
                        setattr(connection, PEER, peer)
                    verdict = check_open(peer, connection)
                if verdict == OWN:
                    self.own.append(self.stop)
                elif verdict == TRANSPORT:
                    self.waiting.append((self.stop, peer))
                elif not mark(peer.fd, batch):
                    break  # a duplicate: if its first frame is cut, the rest must leave before the second frame
                else:
                    sends = self.masked if peer.masked else self.plain
                    window = window_of(peer)
                    if PyList_GET_SIZE(sends.encodings) == 0 or sends.last_window != <PyObject *>window:
                        if (peer.masked or PyList_GET_SIZE(sends.encodings)) and self.interrupts(&overlaps):
                            break
                        encodes = True
                        sends.new_group(0, window, message, peer.masked)
                        encodes = False
                    sends.add(peer.fd, self.stop, sends.last_group, peer.row)
                self.stop += 1
        except Exception:
            if encodes:  # nothing has been sent yet
                raise
            # The connection's own methods will fail in the same way, and that is reported.
        return 0

    cdef bint interrupts(self, bint *overlaps) noexcept:
        """Return whether threads are sending, so that user code must not run yet. If not, they do not start early."""
        overlaps[0] = False
        return self.plain.begun

    def collect(self, TickTable table not None, size_t count, sequence_of, bint ready=False):
        cdef Generation *generation = &table.generations[1 - table.publishing]
        cdef int fd, sending = 1 - table.publishing
        cdef uint32_t slot, node, row
        cdef size_t i, place, asked_size = 0
        cdef uint32_t *asked = NULL
        cdef PyObject *peers[AHEAD]
        cdef size_t n, block

        self.table = table
        self.message = sequence_of
        if generation.cursor == generation.touched_size:
            generation.cursor = 0  # check the slots again that were left over by an exception
        count = min(count, generation.touched_size - generation.cursor)
        asked = <uint32_t *>resized(NULL, (count + 1) * sizeof(uint32_t))
        try:
            for i in range(count):
                place = generation.first + generation.cursor + i
                slot = generation.touched[place if place < generation.touched_size else place - generation.touched_size]
                node = table.nodes[sending][slot]  # not cached: `sequence_of` runs code that may move the array
                if node == 0 or table.flags[slot] & DETACHED:
                    continue
                if PyList_GET_ITEM(table.peers, slot) == <PyObject *>None:  # it was published to after its removal
                    table.clear(slot, sending)
                    continue
                if table.flags[slot] & ASIDE or table.skips[slot]:
                    self.refused.append((slot, <object>PyList_GET_ITEM(table.peers, slot)))
                    continue
                row = table.rows[slot]
                fd = fd_of(row)
                if fd < 0:
                    asked[asked_size] = slot
                    asked_size += not ready
                else:
                    self.add_slot(fd, slot, node, window_in(row), row, sequence_of)
            i = 0
            while i < asked_size:
                block = min(<size_t>AHEAD, asked_size - i)
                for n in range(block):
                    peers[n] = PyList_GET_ITEM(table.peers, asked[i + n])
                    wsfast_fetch_object(<object>peers[n], PEER_LINES)
                for n in range(block):
                    if peers[n] == <PyObject *>None:  # it was removed meanwhile
                        peers[n] = NULL
                        continue
                    connection = (<Peer>peers[n]).connection
                    wsfast_fetch_object(connection, 1)
                    wsfast_fetch_attributes(connection)
                warm_peers(peers, block)
                for n in range(block):
                    if PyList_GET_ITEM(table.peers, asked[i + n]) == <PyObject *>None:
                        continue
                    self.check_slot(asked[i + n], table.nodes[sending][asked[i + n]], sequence_of)
                i += block
        finally:
            PyMem_Free(asked)
        self.cursor = generation.cursor + count
        self.prepare()

    cdef int add_slot(self, int fd, uint32_t slot, uint32_t node, window, uint32_t row, sequence_of) except -1:
        cdef Sends sends = self.plain

        if (
            PyList_GET_SIZE(sends.encodings) == 0
            or sends.last_node != node
            or sends.last_window != <PyObject *>window
        ):
            sends.new_group(node, window, sequence_of(node), False)
        return sends.add(fd, slot, sends.last_group, row)

    cdef int check_slot(self, uint32_t slot, uint32_t node, sequence_of) except -1:
        """Check one peer that is not known to be ready, and list it according to the result."""
        cdef Peer peer = <Peer>PyList_GET_ITEM(self.table.peers, slot)
        cdef Verdict verdict

        try:
            verdict = check_peer(peer, peer.connection)
        except Exception:
            verdict = OWN  # the connection's own methods will fail in the same way, and that is reported
        if verdict == CLOSED:
            self.closed.append(slot)
        elif verdict == OWN:
            self.own.append((slot, peer))
        elif verdict == TRANSPORT:
            self.waiting.append((slot, peer))
        else:
            self.add_slot(peer.fd, slot, node, window_of(peer), peer.row, sequence_of)
        return 0

    cdef int prepare(self) except -1:
        """Do everything that can fail before the first byte is sent, except what threads are sending already."""
        if self.masked.size:
            self.keys = urandom(self.masked.size * WSF_KEY_SIZE)
        return 0

    def send(self):
        cdef bint threads = threaded(self.plain.size + self.masked.size)
        cdef Sends masked = self.masked

        try:
            if masked.size:
                masked.keys = <const uint8_t *>PyBytes_AS_STRING(self.keys)
                for i in range(PyList_GET_SIZE(masked.data)):
                    masked.scratch_size = max(masked.scratch_size, WSF_MAX_HEADER + masked.buffers[i].size)
                masked.scratch_rooms = wanted_threads if threads else 1
                masked.scratch = <uint8_t *>resized(NULL, masked.scratch_size * masked.scratch_rooms)
            self.finishing = True
            self.sent = <Py_ssize_t>(self.plain.send(threads) + masked.send(threads))
            self.finishing = False
            self.done = True
            # From here to the return, no Python code runs: an interrupt finds all of this done, or nothing.
            try:
                self.note_plain()
                if self.masked.size:
                    self.note_masked()
            except BaseException:  # out of memory
                self.abandon()
                raise
        finally:
            PyMem_Free(masked.scratch)
            masked.scratch = NULL

    def detach(self, done not None):
        cdef TickTable table = self.table
        cdef Sends sends = self.plain

        if not (detaches(sends.size) and sends.detach(done, done.writer)):
            return False
        for i in range(sends.size):
            table.flags[sends.places[i]] |= DETACHED
            table.indexes[sends.places[i]] = <uint32_t>i
            ready_peers.flags[sends.rows[i]] |= UNDER_WAY
        table.detached = sends.size
        table.batch = self
        table.generations[1 - table.publishing].cursor = self.cursor
        self.detached = True
        return True

    @property
    def is_sent(self):
        return self.done or not self.detached or wsf_is_done(&self.plain.call)

    cdef bint note_early(self, size_t i) except -1:
        """Make sure that one connection is sent to now; note that, unless a part of the frame is left."""
        cdef ssize_t result = wsf_claim(&self.plain.call, i)

        if result != <ssize_t>self.plain.buffers[self.plain.groups[i]].size:
            return False
        self.note_at(i, result)
        return True

    cdef int note_plain(self) except -1:
        """Note what was taken, and list what was not."""
        cdef Sends sends = self.plain
        cdef TickTable table = self.table
        cdef size_t i

        if table is not None and not self.detached:
            table.generations[1 - table.publishing].cursor = self.cursor
        for i in range(sends.size):
            self.noted = i
            if not self.detached or table.flags[sends.places[i]] & DETACHED:
                self.note_at(i, sends.results[i])
        if self.detached:
            table.batch = None
        return 0

    cdef int note_at(self, size_t i, ssize_t result) except -1:
        cdef Sends sends = self.plain
        cdef TickTable table = self.table
        cdef uint32_t group = sends.groups[i]
        cdef Py_ssize_t place = sends.places[i]

        if self.detached:
            table.flags[place] &= ~DETACHED
            table.detached -= 1
            ready_peers.flags[sends.rows[i]] &= ~UNDER_WAY
        if result != <ssize_t>sends.buffers[group].size:
            self.leave(sends, i, sends.data[group])
            return 0
        if table is not None:
            table.clear(place, 1 - table.publishing)
        if PyList_GET_ITEM(sends.after, group) != <PyObject *>None:
            ready_peers.move_window(sends.rows[i], <object>PyList_GET_ITEM(sends.after, group))
        return 0

    cdef int note_masked(self) except -1:
        cdef Sends sends = self.masked
        cdef size_t i

        for i in range(sends.size):
            encoding = sends.encodings[sends.groups[i]]
            if sends.results[i] != masked_size(encoding):
                key = self.keys[i * WSF_KEY_SIZE:(i + 1) * WSF_KEY_SIZE]
                frame = encode_frame(encoding.first, encoding.payload, key)
                self.leave(sends, i, frame)
            elif sends.after[sends.groups[i]] is not None:
                ready_peers.move_window(sends.rows[i], sends.after[sends.groups[i]])
        return 0

    cdef int leave(self, Sends sends, size_t index, bytes frame) except -1:
        """List what the kernel did not take."""
        cdef PyObject *known = peer_in(sends.rows[index])
        cdef Py_ssize_t place = sends.places[index]
        cdef ssize_t result = sends.results[index]
        cdef uint32_t group = sends.groups[index]
        cdef Peer peer
        cdef size_t count

        if known == NULL:
            return 0  # the connection is gone; only another thread can have caused this
        peer = <Peer>known
        if self.left is not None and place not in self.left:
            self.left[place] = peer.transport.get_protocol() if peer.found is None else peer.found
        peer.invalidate()
        if result <= 0:
            self.refused.append((place, peer))
            if is_reported_once(result):
                self.lost.append((place, peer, -result))
            return 0
        ends = sends.encodings[group].ends
        if ends is None:
            count = 1
            rest = memoryview(frame)[result:]
        else:
            count = 0
            while ends[count] < result:
                count += 1
            rest = memoryview(frame)[result:ends[count]]
            count += 1
        self.cut.append((place, peer, rest, sends.messages[group], count))
        if self.table is not None:
            if count == <size_t>(1 if ends is None else len(ends)):
                self.table.clear(place, 1 - self.table.publishing)
            else:
                self.table.skips[place] = <uint32_t>count
                self.refused.append((place, peer))
        return 0

    cdef int abandon(self) except -1:
        """Abort connections that were sent half a frame, whose rest is lost now, or anything that is not noted."""
        cdef size_t i

        for _, peer, _, _, _ in self.cut:
            self.abort(peer)
        for i in range(self.noted, self.plain.size):
            if self.detached and not self.table.flags[self.plain.places[i]] & DETACHED:
                continue
            if self.plain.results[i] > 0 and peer_in(self.plain.rows[i]) != NULL:
                self.abort(<Peer>peer_in(self.plain.rows[i]))
        for i in range(self.masked.size):
            if self.masked.results[i] > 0 and peer_in(self.masked.rows[i]) != NULL:
                self.abort(<Peer>peer_in(self.masked.rows[i]))
        del self.cut[:]
        return 0

    cdef int abort(self, Peer peer) except -1:
        try:
            peer.invalidate()
            peer.transport.abort()
        except Exception:
            pass  # continue with the others
        return 0
