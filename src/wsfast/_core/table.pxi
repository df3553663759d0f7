# ---- The tick table: what each subscriber of an event loop must be sent, in dense arrays


@cython.final
cdef class Filter:
    """See `_pure`."""

    cdef object __weakref__
    cdef readonly frozenset tags
    cdef readonly uint64_t mask, skipped
    cdef uint64_t _stamp            # tick and number of the last entry that was tested
    cdef bint _passed

    def __cinit__(self, frozenset tags not None, uint64_t mask):
        self.tags = tags
        self.mask = mask
        self._stamp = UINT64_MAX

    cdef inline bint passes(self, uint64_t stamp, uint64_t mask) noexcept:
        if self._stamp != stamp:
            self._stamp = stamp
            self._passed = self.mask & mask != 0
            self.skipped += not self._passed
        return self._passed


cdef class Members:
    """See `_pure`."""

    cdef uint32_t *_slots
    cdef PyObject **_filters        # for each slot, its filter, with a reference of its own, or NULL; NULL if none has
    cdef size_t _size, _room
    cdef size_t _filtered           # number of slots with a filter
    cdef uint64_t _stamp            # tick and number of the last entry that they got

    def __cinit__(self):
        self._stamp = UINT64_MAX

    def __dealloc__(self):
        cdef size_t i

        if self._filters != NULL:
            for i in range(self._size):
                Py_XDECREF(self._filters[i])
        PyMem_Free(self._filters)
        PyMem_Free(self._slots)

    def __len__(self):
        return self._size

    @property
    def slots(self):
        return [self._slots[i] for i in range(self._size)]

    def add(self, uint32_t slot, Filter wanted=None):
        cdef size_t room

        if self._size == self._room:
            room = max(8, 2 * self._room)
            self._slots = <uint32_t *>resized(self._slots, room * sizeof(uint32_t))
            if self._filters != NULL:
                self._filters = <PyObject **>resized(self._filters, room * sizeof(PyObject *))
            self._room = room
        if wanted is not None:
            self.make_room_for_filters()
        self._slots[self._size] = slot
        if self._filters != NULL:
            self._filters[self._size] = <PyObject *>wanted if wanted is not None else NULL
            self._filtered += wanted is not None
            Py_XINCREF(self._filters[self._size])
        self._size += 1

    def discard(self, uint32_t slot):
        cdef PyObject *before
        cdef size_t index = self.index_of(slot)

        if index == self._size:
            return
        self._size -= 1
        self._slots[index] = self._slots[self._size]
        if self._filters != NULL:
            before = self._filters[index]
            self._filters[index] = self._filters[self._size]
            self._filtered -= before != NULL
            Py_XDECREF(before)

    def set_filter(self, uint32_t slot, Filter wanted=None):
        cdef PyObject *before
        cdef size_t index = self.index_of(slot)

        if index == self._size:
            raise ValueError(f"slot {slot} is not a member")
        if wanted is not None:
            self.make_room_for_filters()
        if self._filters != NULL:
            before = self._filters[index]
            self._filters[index] = <PyObject *>wanted if wanted is not None else NULL
            self._filtered += <size_t>(wanted is not None) - <size_t>(before != NULL)
            Py_XINCREF(self._filters[index])
            Py_XDECREF(before)

    def count(self, uint64_t mask):
        cdef size_t i, count = 0

        if not self._filtered:
            return self._size
        for i in range(self._size):
            count += self.lets(i, mask)
        return count

    def passing(self, uint64_t mask):
        return [self._slots[i] for i in range(self._size) if self.lets(i, mask)]

    cdef size_t index_of(self, uint32_t slot) noexcept:
        cdef size_t index = 0

        while index < self._size and self._slots[index] != slot:
            index += 1
        return index

    cdef int make_room_for_filters(self) except -1:
        if self._filters == NULL:
            self._filters = <PyObject **>resized(NULL, self._room * sizeof(PyObject *))
            memset(self._filters, 0, self._room * sizeof(PyObject *))
        return 0

    cdef inline bint lets(self, size_t index, uint64_t mask) noexcept:
        return not self._filtered or self._filters[index] == NULL or (<Filter>self._filters[index]).mask & mask != 0


cdef struct Node:
    uint32_t parent, entry          # the node before it, and the entry in between
    uint32_t child, child_entry     # the node that the entry used last leads to, and that entry


cdef struct Generation:
    Node *steps
    size_t steps_size, steps_room
    uint32_t *touched               # slots that have left node 0, in that order, each once; some may be back
    size_t touched_size, touched_room
    size_t first, cursor            # index in `touched` where sending began, and how many were checked since then
    size_t left                     # number of slots that are not at node 0


cdef enum:
    ASIDE = 1           # listed instead of sent to
    TOUCHED = 2         # in `touched` of the first generation; shifted left by one, of the second
    DETACHED = 8        # threads are sending to it, or have sent, while the event loop continues

cdef uint32_t NO_ENTRY = UINT32_MAX


cdef int add_node(Generation *generation, uint32_t parent, uint32_t entry) except -1:
    cdef size_t room

    if generation.steps_size == generation.steps_room:
        room = max(64, 2 * generation.steps_room)
        generation.steps = <Node *>resized(generation.steps, room * sizeof(Node))
        generation.steps_room = room
    generation.steps[generation.steps_size] = Node(parent, entry, 0, NO_ENTRY)
    generation.steps_size += 1
    return 0


cdef inline uint32_t child_of(Generation *generation, uint32_t node, uint32_t number) except 0:
    """Return the node to which an entry leads from another one."""
    if generation.steps[node].child_entry != number:
        add_node(generation, node, number)
        generation.steps[node].child = <uint32_t>(generation.steps_size - 1)
        generation.steps[node].child_entry = number
    return generation.steps[node].child


cdef class Batch


cdef class TickTable:
    """See `_pure`."""

    cdef uint32_t *rows         # for each slot, the row of its peer in `ready_peers`
    cdef uint32_t *nodes[2]     # for each generation and slot, the node
    cdef uint32_t *skips        # for each slot, how many entries of the generation being sent it was sent already
    cdef uint8_t *flags
    cdef size_t size, room
    cdef readonly list peers
    cdef list free
    cdef Generation generations[2]
    cdef list entries           # for each generation, a list of its entries
    cdef dict ends              # nodes that `extend()` has led to, by the node before and the numbers of the entries
    cdef int publishing         # index of the generation that is being published; the other one is being sent
    cdef uint64_t tick          # how often sending has begun
    # The detached batch.
    cdef Batch batch
    cdef readonly size_t detached   # number of slots with the flag DETACHED
    cdef uint32_t *indexes          # for each of these slots, its index in the batch
    cdef public object settle

    def __cinit__(self):
        self.peers = []
        self.free = []
        self.entries = [[], []]
        self.ends = {}
        add_node(&self.generations[0], 0, NO_ENTRY)
        add_node(&self.generations[1], 0, NO_ENTRY)

    def __dealloc__(self):
        PyMem_Free(self.rows)
        PyMem_Free(self.skips)
        PyMem_Free(self.flags)
        PyMem_Free(self.indexes)
        for i in range(2):
            PyMem_Free(self.nodes[i])
            PyMem_Free(self.generations[i].steps)
            PyMem_Free(self.generations[i].touched)

    # ---- Slots

    def add(self, Peer peer not None):
        cdef size_t slot, room

        if self.free:
            slot = self.free.pop()
        else:
            if self.size == self.room:
                room = max(64, 2 * self.room)
                self.rows = <uint32_t *>resized(self.rows, room * sizeof(uint32_t))
                self.nodes[0] = <uint32_t *>resized(self.nodes[0], room * sizeof(uint32_t))
                self.nodes[1] = <uint32_t *>resized(self.nodes[1], room * sizeof(uint32_t))
                self.skips = <uint32_t *>resized(self.skips, room * sizeof(uint32_t))
                self.flags = <uint8_t *>resized(self.flags, room * sizeof(uint8_t))
                self.indexes = <uint32_t *>resized(self.indexes, room * sizeof(uint32_t))
                self.room = room
            self.peers.append(None)
            slot = self.size
            self.flags[slot] = 0
            self.size += 1
        self.rows[slot] = peer.row
        self.nodes[0][slot] = self.nodes[1][slot] = self.skips[slot] = 0
        self.flags[slot] &= TOUCHED | TOUCHED << 1  # the previous peer with this slot may have been published to
        if peer.masked:
            self.flags[slot] |= ASIDE
        self.peers[slot] = peer
        peer.invalidate()
        peer.slot, peer.table = slot, self
        return slot

    def remove(self, Peer peer not None):
        cdef Py_ssize_t slot = peer.slot

        self.check(slot)
        peer.invalidate()  # this waits for threads that send to it
        peer.slot, peer.table = -1, None
        self.rows[slot] = 0
        self.clear(slot, 0)
        self.clear(slot, 1)
        self.skips[slot] = 0
        self.peers[slot] = None
        self.free.append(slot)

    cdef int check(self, Py_ssize_t slot) except -1:
        if not 0 <= slot < <Py_ssize_t>self.size or PyList_GET_ITEM(self.peers, slot) == <PyObject *>None:
            raise IndexError(f"there is no slot {slot}")
        return 0

    cpdef wait(self, Py_ssize_t slot):
        # If the batch is finishing, this is another thread: the thread that detached the batch waits for its end.
        if self.flags[slot] & DETACHED and not self.batch.finishing and not self.batch.note_early(self.indexes[slot]):
            self.settle()

    cdef void clear(self, size_t slot, int generation) noexcept:
        if self.nodes[generation][slot]:
            self.nodes[generation][slot] = 0
            self.generations[generation].left -= 1

    def set_aside(self, Py_ssize_t slot, bint aside):
        self.check(slot)
        if aside:
            self.flags[slot] |= ASIDE
        else:
            self.flags[slot] &= ~ASIDE

    # ---- Publishing

    def enter(self, entry):
        cdef list entries = self.entries[self.publishing]

        entries.append(entry)
        return PyList_GET_SIZE(entries) - 1

    def publish(
        self, Members members not None, uint32_t number, excluded=(), list already=None, uint64_t mask=UINT64_MAX
    ):
        cdef Generation *generation = &self.generations[self.publishing]
        cdef size_t i, count = 0
        cdef uint32_t node
        cdef PyObject *wanted
        cdef PyObject **filters = members._filters if members._filtered else NULL
        cdef bint excludes = bool(excluded)
        cdef uint64_t stamp = self.tick << 32 | number

        if members._stamp == stamp:
            return 0
        self.make_room(members._size)
        for i in range(members._size):
            if filters != NULL:
                wanted = filters[i]
                if wanted != NULL and not (<Filter>wanted).passes(stamp, mask):
                    continue
            if excludes and members._slots[i] in excluded:
                continue
            if already is not None:
                node = self.nodes[self.publishing][members._slots[i]]
                if node and generation.steps[node].entry == number:
                    already.append(members._slots[i])
                    continue
            self.move(members._slots[i], child_of(generation, self.nodes[self.publishing][members._slots[i]], number))
            count += 1
        members._stamp = stamp
        return count

    def extend(self, Py_ssize_t slot, tuple numbers not None):
        cdef Generation *generation = &self.generations[self.publishing]
        cdef uint32_t node

        self.check(slot)
        if not numbers:
            return
        self.make_room(1)
        key = self.nodes[self.publishing][slot], numbers
        known = self.ends.get(key)
        if known is None:
            node = self.nodes[self.publishing][slot]
            for number in numbers:
                node = child_of(generation, node, number)
            self.ends[key] = node
        else:
            node = known
        self.move(<uint32_t>slot, node)

    cdef int make_room(self, size_t count) except -1:
        cdef Generation *generation = &self.generations[self.publishing]
        cdef size_t room

        if generation.touched_size + count > generation.touched_room:
            room = max(generation.touched_size + count, 2 * generation.touched_room)
            generation.touched = <uint32_t *>resized(generation.touched, room * sizeof(uint32_t))
            generation.touched_room = room
        return 0

    cdef inline void move(self, uint32_t slot, uint32_t node) noexcept:
        cdef Generation *generation = &self.generations[self.publishing]

        if self.nodes[self.publishing][slot] == 0:
            generation.left += 1
            if not self.flags[slot] & TOUCHED << self.publishing:
                self.flags[slot] |= TOUCHED << self.publishing
                generation.touched[generation.touched_size] = slot
                generation.touched_size += 1
        self.nodes[self.publishing][slot] = node

    # ---- Sending

    @property
    def published(self):
        return PyList_GET_SIZE(self.entries[self.publishing]) > 0

    @property
    def sending(self):
        return PyList_GET_SIZE(self.entries[1 - self.publishing]) > 0

    @property
    def left(self):
        return self.generations[1 - self.publishing].left

    def begin(self, size_t start):
        cdef Generation *generation

        if self.sending:
            raise ValueError("the entries published before are still being sent")
        self.ends = {}
        self.publishing = 1 - self.publishing
        self.tick += 1
        generation = &self.generations[1 - self.publishing]
        generation.cursor = 0
        generation.first = start % generation.touched_size if generation.touched_size else 0

    def finish(self):
        cdef Generation *generation = &self.generations[1 - self.publishing]
        cdef size_t i

        if generation.left:
            raise ValueError(f"{generation.left} slots have not been sent to")
        for i in range(generation.touched_size):
            self.flags[generation.touched[i]] &= ~(TOUCHED << 1 - self.publishing)
        generation.touched_size = generation.cursor = 0
        generation.steps_size = 1
        generation.steps[0] = Node(0, NO_ENTRY, 0, NO_ENTRY)
        entries = self.entries[1 - self.publishing]
        self.entries[1 - self.publishing] = []
        return entries

    def sequence(self, size_t node):
        return self.sequence_in(1 - self.publishing, node)

    cdef list sequence_in(self, int number, size_t node):
        cdef Generation *generation = &self.generations[number]
        cdef list entries = self.entries[number]
        cdef list sequence = []

        if node >= generation.steps_size:
            raise IndexError(f"there is no node {node}")
        while node:
            sequence.append(entries[generation.steps[node].entry])
            node = generation.steps[node].parent
        sequence.reverse()
        return sequence

    def node(self, Py_ssize_t slot):
        self.check(slot)
        return self.nodes[1 - self.publishing][slot]

    def is_pending(self, Py_ssize_t slot):
        self.check(slot)
        return self.nodes[0][slot] != 0 or self.nodes[1][slot] != 0

    def pending(self, Py_ssize_t slot):
        self.check(slot)
        sent = self.sequence_in(1 - self.publishing, self.nodes[1 - self.publishing][slot])
        return sent[self.skips[slot]:] + self.sequence_in(self.publishing, self.nodes[self.publishing][slot])

    def take(self, Py_ssize_t slot, list into not None, *, bint published=False):
        self.check(slot)
        self.wait(slot)
        into += self.sequence_in(1 - self.publishing, self.nodes[1 - self.publishing][slot])[self.skips[slot]:]
        self.skips[slot] = 0
        self.clear(slot, 1 - self.publishing)
        if published:
            into += self.sequence_in(self.publishing, self.nodes[self.publishing][slot])
            self.clear(slot, self.publishing)
