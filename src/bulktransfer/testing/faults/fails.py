"""Lets one system call of one side fail, each in turn, and sees the conversation through.

Knows: which errors are plausible for which call; that a typed error, a retry and no leak are due. Must not know: how a
call is made to fail.
"""

from __future__ import annotations

import errno as e
import threading
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import bulktransfer as bulk

from .kills import Neighbour, Scene, held, left
from .script import ACTS, PATIENCE_S, Cast, Side
from .tracing import NAMES, Board, Child, Step

TRIES = 4
TYPED = (bulk.BulkError, OSError, MemoryError)

# x86-64 number: name, what it may fail with. Calls that cannot fail for want of something are left out.
CALLS: dict[int, tuple[str, tuple[int, ...]]] = {
    9: ("mmap", (e.ENOMEM,)),
    10: ("mprotect", (e.ENOMEM,)),
    28: ("madvise", (e.ENOMEM, e.EAGAIN)),
    7: ("poll", (e.EINTR, e.ENOMEM)),
    271: ("ppoll", (e.EINTR, e.ENOMEM)),
    41: ("socket", (e.EMFILE, e.ENOBUFS)),
    42: ("connect", (e.EINTR, e.EAGAIN)),
    46: ("sendmsg", (e.EINTR, e.ENOBUFS, e.ENOMEM, e.EAGAIN)),
    44: ("sendto", (e.EINTR, e.ENOBUFS)),  # a bell; EAGAIN would mean that others lie there unread
    45: ("recvfrom", (e.EINTR, e.ENOMEM)),
    47: ("recvmsg", (e.EINTR, e.ENOMEM)),
    49: ("bind", (e.ENOSPC, e.ENOMEM)),
    53: ("socketpair", (e.EMFILE,)),
    54: ("setsockopt", (e.ENOMEM,)),
    56: ("clone", (e.EAGAIN,)),
    72: ("fcntl", (e.EMFILE, e.ENOMEM)),
    73: ("flock", (e.EINTR, e.ENOLCK)),
    77: ("ftruncate", (e.ENOMEM, e.EINTR)),
    83: ("mkdir", (e.ENOSPC,)),
    232: ("epoll_wait", (e.EINTR,)),
    233: ("epoll_ctl", (e.ENOMEM, e.ENOSPC)),
    254: ("inotify_add_watch", (e.ENOSPC, e.ENOMEM)),
    257: ("openat", (e.EMFILE, e.ENOMEM)),
    283: ("timerfd_create", (e.EMFILE,)),
    285: ("fallocate", (e.ENOSPC, e.EINTR, e.ENOMEM)),
    288: ("accept4", (e.EMFILE, e.ENOMEM, e.EINTR)),
    290: ("eventfd2", (e.EMFILE,)),
    291: ("epoll_create1", (e.EMFILE,)),
    293: ("pipe2", (e.EMFILE,)),
    294: ("inotify_init1", (e.EMFILE,)),
    319: ("memfd_create", (e.EMFILE, e.ENOMEM)),
    434: ("pidfd_open", (e.EMFILE, e.ENOMEM)),
    435: ("clone3", (e.EAGAIN,)),
    441: ("epoll_pwait2", (e.EINTR,)),
}


class Fault(NamedTuple):
    """One call that failed, and what became of it: `seen` by its side, `other` by the other side."""

    scene: Scene
    place: int
    act: str
    call: str
    error: str
    seen: str
    other: str
    wrong: tuple[str, ...]


def play(cast: Cast, is_source: bool, domain: bulk.Domain, board: Board | None) -> list[str]:
    """The whole conversation, tried again where something failed: what was raised. Raises: what is not typed."""
    seen: list[str] = []
    for _ in range(TRIES):
        side = Side(cast, is_source, domain)
        try:
            if _through(side, seen, board):
                return seen
        finally:
            wrong = side.leave()
            assert not wrong, wrong
    raise AssertionError(f"it does not come to its end: {seen}")


def _through(side: Side, seen: list[str], board: Board | None) -> bool:
    """Act by act; False where the channel ended, and all is to be done once more."""
    for number, (act, do) in enumerate(side.acts()):
        if board is not None:
            board.mark(number)
        for _ in range(TRIES):
            try:
                do()
                break
            except TYPED as error:
                seen.append(f"{act}: {type(error).__name__}")
                if act == "destroy":
                    return True
                if side.channel is not None and side.channel.state is bulk.ChannelState.CLOSED:
                    if act != "bind" or side.asks:
                        return False
                    side.channel = None
        else:
            raise AssertionError(f"{act} fails again and again: {seen}")
    return True


def faulty(cast: Cast, is_source: bool, board: Board) -> None:
    """The side with the fault, in a forked child; it ends with 0 if all was as promised, and says what it saw."""
    Neighbour(bulk.current_domain(), bulk.Trust.NONE).close()  # the helper thread has descriptors, and stays
    before = held()
    with bulk.Domain() as domain:
        seen = play(cast, is_source, domain, board)
        board.mark(len(ACTS) - 1)
        del domain
    wrong = left(before)
    board.say("; ".join(seen or ["nothing"]) + "".join(f" WRONG {text}" for text in wrong))


class Attempt:
    """One run: the `place`-th call that may fail does so, with its `which`-th error."""

    def __init__(self, scene: Scene, place: int, which: int, directory: str) -> None:
        self.scene, self.place, self.which = scene, place, which
        self.cast = Cast(scene.trust, scene.source_asks, f"shm:{directory}/fail")
        self.board = Board()
        self.board.mark(len(ACTS) - 1)  # nothing fails before the first act
        self.calls = 0
        self.hit: tuple[str, str, str] | None = None  # act, call, error
        self.more = False  # the call has a further error to try
        self.status = 0
        self._forked = threading.Event()
        self._thread = threading.Thread(target=self._trace)

    def _trace(self) -> None:
        child = Child(lambda: faulty(self.cast, self.scene.source_dies, self.board), self.board)
        self._forked.set()
        self.status = child.run(self._decide)

    def _decide(self, step: Step) -> int | None:
        if step.kind != "enter" or step.call not in CALLS or ACTS[step.phase] == "over":
            return None
        self.calls += 1
        if self.calls != self.place:
            return None
        name, errors = CALLS[step.call]
        error = errors[self.which % len(errors)]  # another run may have another call in this place
        self.more = self.which + 1 < len(errors)
        self.hit = (ACTS[step.phase], name, NAMES[error])
        return error

    def run(self) -> Fault | None:
        """All of it; None if there is no such call any more."""
        before = held()
        wrong: list[str] = []
        other = "?"
        with bulk.Domain() as domain:
            neighbour = Neighbour(domain)
            self._thread.start()
            self._forked.wait(PATIENCE_S)
            try:
                other = "; ".join(play(self.cast, not self.scene.source_dies, domain, None)) or "nothing"
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not what was promised
                wrong.append(f"the other side: {type(error).__name__}: {error}")
            self._thread.join(3 * PATIENCE_S)
            wrong += neighbour.goes_on()
            neighbour.close()
        del neighbour, domain
        if self.status != 0:
            wrong.append(f"the side with the fault ended with {self.status}")
        said = self.board.said
        if "WRONG" in said:
            wrong.append(said)
        wrong += left(before)
        self.board.close()
        if self.hit is None:
            return None if not wrong else Fault(self.scene, self.place, "", "", "", said, other, tuple(wrong))
        return Fault(self.scene, self.place, *self.hit, said, other, tuple(wrong))


def fail_all(scene: Scene, directory: str, every: int = 1, start: int = 1) -> Iterator[Fault]:
    """Every fault of a scene, from the first call to the last."""
    place = start
    while True:
        which = 0
        while True:
            attempt = Attempt(scene, place, which, directory)
            fault = attempt.run()
            if fault is None:
                return
            yield fault
            if not fault.act:
                return
            which += 1
            if not attempt.more:
                break
        place += every


def table(faults: list[Fault]) -> str:
    """Faults by call, and what their side saw."""
    rows = [("call failed with", "faults", "typed error, retried", "nothing to be seen", "wrong")]
    for key in [*sorted({(f.call, f.error) for f in faults}), None]:
        its = [f for f in faults if key in ((f.call, f.error), None)]
        counts = Counter("wrong" if f.wrong else "nothing" if f.seen == "nothing" else "typed" for f in its)
        name = "sum" if key is None else f"{key[0]} {key[1]}"
        rows.append((name, str(len(its)), str(counts["typed"]), str(counts["nothing"]), str(counts["wrong"])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
