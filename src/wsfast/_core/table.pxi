# ---- Subscribers: what a publish must know of each, in dense arrays


cdef class Members:
    """See the twin."""

    cdef uint32_t *_slots
    cdef size_t _size, _room

    def __dealloc__(self):
        PyMem_Free(self._slots)

    def __len__(self):
        return self._size

    @property
    def slots(self):
        return [self._slots[i] for i in range(self._size)]

    def add(self, uint32_t slot):
        cdef size_t room

        if self._size == self._room:
            room = max(8, 2 * self._room)
            self._slots = <uint32_t *>resized(self._slots, room * sizeof(uint32_t))
            self._room = room
        self._slots[self._size] = slot
        self._size += 1

    def remove(self, uint32_t slot):
        cdef size_t index = 0

        while index < self._size and self._slots[index] != slot:
            index += 1
        if index == self._size:
            raise ValueError(f"slot {slot} is not a member")
        self._size -= 1
        self._slots[index] = self._slots[self._size]


cdef struct Node:
    uint32_t parent, entry          # where it came from, and by which entry
    uint32_t child, child_entry     # where the entry that was asked for last leads
    uint32_t group                  # which buffer those at it are sent, while they are; else NO_GROUP


cdef uint32_t NO_ENTRY = UINT32_MAX
cdef uint32_t NO_GROUP = UINT32_MAX
cdef int NO_FD = INT_MIN


cdef class Roster:
    """See the twin."""

    cdef int *fds               # of each slot; its complement while it is not ready; NO_FD if it has none
    cdef uint32_t *nodes        # of each slot
    cdef uint8_t *aside         # of each slot, whether it is set aside
    cdef size_t size, room
    cdef list free
    cdef uint32_t *touched      # slots that are not at node 0, in the order in which they left it
    cdef size_t touched_size, touched_room, done
    cdef Node *steps
    cdef size_t steps_size, steps_room

    def __cinit__(self):
        self.free = []
        self.new_node(0, NO_ENTRY)

    def __dealloc__(self):
        PyMem_Free(self.fds)
        PyMem_Free(self.nodes)
        PyMem_Free(self.aside)
        PyMem_Free(self.touched)
        PyMem_Free(self.steps)

    cdef uint32_t new_node(self, uint32_t parent, uint32_t entry) except? 0:
        cdef size_t room

        if self.steps_size == self.steps_room:
            room = max(64, 2 * self.steps_room)
            self.steps = <Node *>resized(self.steps, room * sizeof(Node))
            self.steps_room = room
        self.steps[self.steps_size] = Node(parent, entry, 0, NO_ENTRY, NO_GROUP)
        self.steps_size += 1
        return <uint32_t>(self.steps_size - 1)

    cdef int check(self, Py_ssize_t slot) except -1:
        if not 0 <= slot < <Py_ssize_t>self.size:
            raise IndexError(f"there is no slot {slot}")
        return 0

    def add(self, int fd=-1):
        cdef size_t slot, room

        if self.free:
            slot = self.free.pop()
            self.fds[slot] = NO_FD if fd < 0 else ~fd
            return slot
        if self.size == self.room:
            room = max(64, 2 * self.room)
            self.fds = <int *>resized(self.fds, room * sizeof(int))
            self.nodes = <uint32_t *>resized(self.nodes, room * sizeof(uint32_t))
            self.aside = <uint8_t *>resized(self.aside, room * sizeof(uint8_t))
            self.room = room
        self.fds[self.size] = NO_FD if fd < 0 else ~fd
        self.nodes[self.size] = 0
        self.aside[self.size] = False
        self.size += 1
        return self.size - 1

    def remove(self, Py_ssize_t slot):
        cdef size_t i

        self.check(slot)
        if self.nodes[slot]:
            self.nodes[slot] = 0
            for i in range(self.done, self.touched_size):
                if self.touched[i] == <uint32_t>slot:
                    self.touched_size -= 1
                    self.touched[i] = self.touched[self.touched_size]
                    break
        self.fds[slot] = NO_FD
        self.aside[slot] = False
        self.free.append(slot)

    def set_ready(self, Py_ssize_t slot, bint ready):
        self.check(slot)
        if self.fds[slot] == NO_FD:
            if ready:
                raise ValueError(f"slot {slot} has no descriptor")
        elif ready != (self.fds[slot] >= 0):
            self.fds[slot] = ~self.fds[slot]

    def set_aside(self, Py_ssize_t slot, bint aside):
        self.check(slot)
        self.aside[slot] = aside

    @property
    def pending(self):
        return self.touched_size - self.done

    def node(self, Py_ssize_t slot):
        self.check(slot)
        return self.nodes[slot]

    def is_pending(self, Py_ssize_t slot):
        self.check(slot)
        return self.nodes[slot] != 0

    def publish(self, Members members not None, uint32_t entry, excluded=(), list already=None):
        cdef size_t i, count = 0
        cdef uint32_t node
        cdef bint excludes = bool(excluded)

        self.make_room(members._size)
        for i in range(members._size):
            if excludes and members._slots[i] in excluded:
                continue
            if already is not None:
                node = self.nodes[members._slots[i]]
                if node and self.steps[node].entry == entry:
                    already.append(members._slots[i])
                    continue
            self.step(members._slots[i], entry)
            count += 1
        return count

    def append(self, Py_ssize_t slot, uint32_t entry):
        self.check(slot)
        self.make_room(1)
        self.step(<uint32_t>slot, entry)

    cdef int make_room(self, size_t count) except -1:
        cdef size_t room

        if self.touched_size + count > self.touched_room:
            room = max(self.touched_size + count, 2 * self.touched_room)
            self.touched = <uint32_t *>resized(self.touched, room * sizeof(uint32_t))
            self.touched_room = room
        return 0

    cdef inline int step(self, uint32_t slot, uint32_t entry) except -1:
        cdef uint32_t node = self.nodes[slot], child

        if self.steps[node].child_entry != entry:
            child = self.new_node(node, entry)
            self.steps[node].child = child
            self.steps[node].child_entry = entry
        if node == 0:
            self.touched[self.touched_size] = slot
            self.touched_size += 1
        self.nodes[slot] = self.steps[node].child
        return 0

    def sequence(self, size_t node):
        entries = []
        if node >= self.steps_size:
            raise IndexError(f"there is no node {node}")
        while node:
            entries.append(self.steps[node].entry)
            node = self.steps[node].parent
        entries.reverse()
        return entries

    def send(
        self, size_t count, size_t start, list owners not None, frames, list leftovers not None, dict asked not None
    ):
        cdef size_t stop, i, n = 0, set_aside = 0, complete
        cdef uint32_t slot, node
        cdef int *fds = NULL
        cdef uint32_t *groups = NULL
        cdef uint32_t *slots = NULL
        cdef ssize_t *results = NULL
        cdef wsf_buffer *buffers = NULL
        cdef list data = [], nodes = [], unready = None
        cdef uint32_t last = 0

        if <size_t>PyList_GET_SIZE(owners) < self.size:
            raise ValueError(f"{self.size} slots have {PyList_GET_SIZE(owners)} owners")
        if self.done == 0 and self.touched_size:
            self.rotate(start % self.touched_size)
        stop = min(self.touched_size, self.done + count)
        count = stop - self.done
        try:
            fds = <int *>resized(NULL, (count + 1) * sizeof(int))
            groups = <uint32_t *>resized(NULL, (count + 1) * sizeof(uint32_t))
            slots = <uint32_t *>resized(NULL, (count + 1) * sizeof(uint32_t))
            results = <ssize_t *>resized(NULL, (count + 1) * sizeof(ssize_t))
            for i in range(self.done, stop):
                slot = self.touched[i]
                node = self.nodes[slot]
                if self.aside[slot]:
                    set_aside += 1
                    slots[count - set_aside] = slot  # the others are listed from the beginning
                    groups[count - set_aside] = node
                    continue
                if self.fds[slot] < 0:
                    if node != last:  # most are where the one before them is
                        unready = asked.setdefault(node, [])
                        last = node
                    unready.append(<object>PyList_GET_ITEM(owners, slot))
                    continue
                if self.steps[node].group == NO_GROUP:
                    data.append(<bytes?>frames(node))
                    nodes.append(node)
                    self.steps[node].group = <uint32_t>(PyList_GET_SIZE(data) - 1)
                fds[n] = self.fds[slot]
                groups[n] = self.steps[node].group
                slots[n] = slot
                n += 1
            buffers = <wsf_buffer *>resized(NULL, (PyList_GET_SIZE(data) + 1) * sizeof(wsf_buffer))
            for i in range(<size_t>PyList_GET_SIZE(data)):
                buffers[i] = buffer_of(data[i])
            # From here on, nothing can fail before the caller knows what was cut off, but for the lack of memory.
            for i in range(self.done, stop):
                self.nodes[self.touched[i]] = 0
            self.done = stop
            with nogil:
                complete = wsf_send_many(fds, groups, n, buffers, results)
            for i in range(set_aside):
                leftovers.append((slots[count - 1 - i], groups[count - 1 - i], 0))
            if complete < n:
                for i in range(n):
                    if results[i] != <ssize_t>buffers[groups[i]].size:
                        leftovers.append((slots[i], nodes[groups[i]], results[i]))
        finally:
            for node in nodes:
                self.steps[node].group = NO_GROUP
            PyMem_Free(fds)
            PyMem_Free(groups)
            PyMem_Free(slots)
            PyMem_Free(results)
            PyMem_Free(buffers)
        return complete

    cdef int rotate(self, size_t start) except -1:
        """Have the pending slot with that index be the first."""
        cdef uint32_t *head

        if start == 0:
            return 0
        head = <uint32_t *>resized(NULL, start * sizeof(uint32_t))
        memcpy(head, self.touched, start * sizeof(uint32_t))
        memmove(self.touched, self.touched + start, (self.touched_size - start) * sizeof(uint32_t))
        memcpy(self.touched + self.touched_size - start, head, start * sizeof(uint32_t))
        PyMem_Free(head)
        return 0

    def compact(self):
        cdef uint32_t *places = NULL    # of each node, where it is moved to; 0 if nobody comes from there
        cdef uint32_t node, parent, first = NO_ENTRY, count = 1
        cdef size_t i

        if self.touched_size == self.done:
            raise ValueError("no slots are pending")
        places = <uint32_t *>resized(NULL, self.steps_size * sizeof(uint32_t))
        memset(places, 0, self.steps_size * sizeof(uint32_t))
        for i in range(self.done, self.touched_size):
            node = self.nodes[self.touched[i]]
            while node and not places[node]:
                places[node] = 1
                first = min(first, self.steps[node].entry)
                node = self.steps[node].parent
        self.steps[0].child_entry = NO_ENTRY
        for i in range(1, self.steps_size):
            if places[i]:
                parent = places[self.steps[i].parent] if self.steps[i].parent else 0
                self.steps[count] = Node(parent, self.steps[i].entry - first, 0, NO_ENTRY, NO_GROUP)
                self.steps[parent].child = count  # the last one, which the newest entry leads to
                self.steps[parent].child_entry = self.steps[count].entry
                places[i] = count
                count += 1
        self.steps_size = count
        self.touched_size -= self.done
        memmove(self.touched, self.touched + self.done, self.touched_size * sizeof(uint32_t))
        self.done = 0
        for i in range(self.touched_size):
            self.nodes[self.touched[i]] = places[self.nodes[self.touched[i]]]
        PyMem_Free(places)
        return first

    def reset(self):
        if self.touched_size != self.done:
            raise ValueError(f"{self.touched_size - self.done} slots are pending")
        self.touched_size = self.done = 0
        self.steps_size = 1
        self.steps[0] = Node(0, NO_ENTRY, 0, NO_ENTRY, NO_GROUP)
