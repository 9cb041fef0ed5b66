"""The auditor's buffers: which are lent over which lanes, and how each comes home.

Knows: what a lane's end does to what was lent over it. Must not know: processes, or why a lane ended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import bulktransfer as bulk
from bulktransfer import BufferState, EventKind, Trust

from .brief import Lane
from .ends import ARRIVALS, End
from .letters import HEAD, Label, Pen, Wrong

KINDS = ((4096, 32), (65536, 16), (1 << 20, 4))  # sizes and counts of the pools of each trust level


class Loan:
    """A buffer that is away: over which lanes, and what is in it."""

    def __init__(self, act: str, key: int, lanes: set[int]) -> None:
        self.act = act
        self.key = key
        self.lanes = lanes


class Bank:
    """Pools that live as long as the soak, and what is away of them."""

    def __init__(self, pen: Pen, chance: random.Random) -> None:
        self.pen = pen
        self.chance = chance
        self.allocators: dict[Trust, list[bulk.Allocator]] = {
            trust: [bulk.Allocator(count=count, size=size, trust=trust) for size, count in KINDS]
            for trust in (Trust.FULL, Trust.HALF, Trust.NONE)
        }
        self.owners = {a.pool.id: a for family in self.allocators.values() for a in family}
        self.loans: dict[bulk.Buffer, Loan] = {}
        self.reclaimed = 0  # buffers that leases gave back

    def take(self, lane: Lane) -> tuple[bulk.Buffer, int] | None:
        """A buffer with new contents for a lane; None while none is free."""
        allocator = self.chance.choice(self.allocators[Trust[lane.trust]])
        if not allocator.available:
            return None
        buffer = allocator.alloc()
        key = self.chance.getrandbits(63)
        length = self.chance.choice((HEAD.size, self.chance.randrange(HEAD.size, buffer.size + 1), buffer.size))
        buffer.put(self.pen.write(key, length))
        return buffer, key

    def lend(self, buffer: bulk.Buffer, loan: Loan) -> None:
        """It goes away."""
        if buffer in self.loans:
            raise Wrong(f"{buffer!r} was free though it is lent")
        self.loans[buffer] = loan

    def put_back(self, buffer: bulk.Buffer) -> None:
        """It is free again."""
        self.owners[buffer.pool.id].free(buffer)

    def came_home(self, buffer: bulk.Buffer, lane: int, *, back: bool = False) -> None:
        """The other side gave it back, over the lane that it left over (`back`: from a route). Raises: Wrong."""
        loan = self.loans.get(buffer)
        if loan is None or lane not in loan.lanes:
            raise Wrong(f"{buffer!r} came home over lane {lane}, where it was not lent")
        loan.lanes.discard(lane)
        if back:
            loan.lanes.clear()
        if not loan.lanes:
            self._finish(buffer, loan)

    def refused(self, buffer: bulk.Buffer, lane: int) -> None:
        """The other side did not take it. Raises: Wrong."""
        self.came_home(buffer, lane, back=self.loans[buffer].act == "round")

    def went_round(self, buffer: bulk.Buffer, label: Label, lane: int) -> None:
        """It came home over the last lane of its route. Raises: Wrong."""
        loan = self.loans.get(buffer)
        if loan is None or lane not in loan.lanes or loan.key != label.key:
            raise Wrong(f"{buffer!r} with key {label.key} came round over lane {lane}, where it was not sent")
        loan.lanes.clear()
        self._finish(buffer, loan)

    def _finish(self, buffer: bulk.Buffer, loan: Loan) -> None:
        if buffer.state is not BufferState.READ_WRITE:
            raise Wrong(f"{buffer!r} came home and is {buffer.state.name}")
        if loan.act == "copy":
            self.pen.judge(buffer.tobytes(), loan.key, f"{buffer!r}, lent as copies and back")
        del self.loans[buffer]
        self.put_back(buffer)

    def sweep(self, ended: Callable[[int], bool]) -> None:
        """What was away over lanes that are all over, and is back since everybody let go. Raises: Wrong."""
        for family in self.allocators.values():
            for allocator in family:
                if allocator.detached < 0:
                    raise Wrong(f"{allocator!r}: {allocator.detached} detached")
        for buffer, loan in list(self.loans.items()):
            if buffer.state is BufferState.READ_WRITE and all(ended(lane) for lane in loan.lanes):
                self.reclaimed += 1
                self._finish(buffer, loan)

    def away(self, lanes: Sequence[int]) -> list[bulk.Buffer]:
        """What is not home of what left over these lanes."""
        return [buffer for buffer, loan in self.loans.items() if loan.lanes.intersection(lanes)]

    def check_home(self) -> None:
        """Nobody has anything. Raises: Wrong."""
        for family in self.allocators.values():
            for allocator in family:
                if (allocator.available, allocator.detached) != (len(allocator.pool), 0):
                    raise Wrong(f"{allocator!r}: all lanes are over, and {allocator.detached} buffers are detached")

    def close(self) -> None:
        """Give the pools up."""
        for family in self.allocators.values():
            for allocator in family:
                allocator.close()


class Lending:
    """The auditor's task on a lane where it sends: moves and copies, the same copy to many."""

    def __init__(self, end: End, bank: Bank, chance: random.Random, others: Callable[[], list[Lending]]) -> None:
        self.end, self.bank, self.chance, self.others = end, bank, chance, others
        self.closed = False
        end.refused = lambda buffer: bank.refused(buffer, end.lane.number)

    def step(self) -> bool:
        """Take what came home, lend what is here."""
        busy = self._take()
        if self.closed:
            return busy
        for allocator in self.bank.allocators[Trust[self.end.lane.trust]]:
            self.end.ask(allocator.pool)
        for _ in range(self.chance.randrange(3)):
            busy = self._lend() or busy
        return busy

    def _take(self) -> bool:
        busy = False
        for event in self.end.events():
            busy = True
            if event.kind in (EventKind.BUFFER_RECEIVED, EventKind.COPY_RELEASED):
                self.bank.came_home(event.buffer, self.end.lane.number)
        return busy

    def ready(self, pool: bulk.Pool) -> bool:
        """Whether a buffer of the pool can be sent."""
        return not self.closed and self.end.connected and pool in self.end.assigned

    def _lend(self) -> bool:
        taken = self.bank.take(self.end.lane) if self.end.assigned else None
        if taken is None:
            return False
        buffer, key = taken
        lanes = [self] if self.ready(buffer.pool) else []
        act = self.chance.choice(("move", "copy"))
        if act == "copy":
            lanes += [o for o in self.others() if o is not self and o.ready(buffer.pool) and self.chance.random() < 0.5]
        loan = Loan(act, key, set())
        for one in lanes:
            if one.end.send(act, buffer, key):
                loan.lanes.add(one.end.lane.number)
        if not loan.lanes:
            self.bank.put_back(buffer)
            return False
        self.bank.lend(buffer, loan)
        return True

    def finish(self) -> bool:
        """Leave; what was sent still arrives."""
        if not self.closed:
            self.closed = True
            self.end.close()
        self._take()
        return self.end.ended is not None


class Round:
    """The auditor's task on a route: sends over its first lane, and gets the same back over its last."""

    def __init__(self, first: End, last: End, bank: Bank, chance: random.Random) -> None:
        self.first, self.last, self.bank, self.chance = first, last, bank, chance
        self.closed = False
        first.refused = lambda buffer: bank.refused(buffer, first.lane.number)

    def step(self) -> bool:
        """Send what is here, take what came round."""
        busy = self._take()
        if self.closed:
            return busy
        for allocator in self.bank.allocators[Trust[self.first.lane.trust]]:
            self.first.ask(allocator.pool)
        for _ in range(self.chance.randrange(3)):
            taken = self.bank.take(self.first.lane) if self.first.assigned else None
            if taken is None:
                break
            buffer, key = taken
            if buffer.pool in self.first.assigned and self.first.connected and self.first.send("move", buffer, key):
                self.bank.lend(buffer, Loan("round", key, {self.first.lane.number, self.last.lane.number}))
                busy = True
            else:
                self.bank.put_back(buffer)
        return busy

    def _take(self) -> bool:
        busy = False
        for event in self.first.events():
            busy = True
            if event.kind is EventKind.BUFFER_RECEIVED:  # the way on is closed
                self.bank.came_home(event.buffer, self.first.lane.number, back=True)
        for event in self.last.events():
            busy = True
            if event.kind in ARRIVALS:
                self.bank.went_round(event.buffer, Label.of(event.meta), self.last.lane.number)
        return busy

    def finish(self) -> bool:
        """Leave; what was sent still comes round."""
        if not self.closed:
            self.closed = True
            self.first.close()
        self._take()
        self.last.give_up()
        return self.first.ended is not None and self.last.ended is not None
