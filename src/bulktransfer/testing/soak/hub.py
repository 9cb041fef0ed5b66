"""The auditor: keeps troupes going for as long as it is told, and holds this process against what it was at the start.

Knows: time that passes while nobody is stopped, descriptors, memory, counts. Must not know: what a troupe does.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from dataclasses import dataclass, field
from types import FrameType

import bulktransfer as bulk

from .bank import Bank, Lending
from .letters import Pen, Wrong
from .troupe import Troupe

TROUPES = 2  # at a time
TICK_S = 1.0
PATIENCE_S = 240  # of a troupe without an end: a hang
QUIET_EVERY = 50  # troupes between looks at what is left behind when nobody is there
LOOK_S = 0.01


@dataclass
class Tally:
    """What was done, and what this process had at quiet moments: (seconds, descriptors, KiB of memory)."""

    seed: int
    seconds: float = 0.0
    stopped_s: float = 0.0
    troupes: int = 0
    kills: int = 0
    transfers: int = 0
    bytes: int = 0
    bytes_lost: int = 0
    refused: int = 0
    reclaimed: int = 0
    quiet: list[tuple[float, int, int]] = field(default_factory=list)


class Clock:
    """Time that passes while this process is not stopped, in ticks of a second."""

    def __init__(self) -> None:
        self.ticks = 0
        self.stopped_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._over.wait(TICK_S):
            now = time.monotonic()
            self.stopped_s += max(0.0, now - before - 3 * TICK_S)
            before = now
            self.ticks += 1

    def close(self) -> None:
        """Stop counting."""
        self._over.set()
        self._thread.join()


class Hub:
    """One soak."""

    def __init__(self, seconds: float, seed: int, patience_s: int = PATIENCE_S) -> None:
        self.limit_s = seconds
        self.patience_s = patience_s
        self.chance = random.Random(seed)
        self.tally = Tally(seed)
        self.letters = self.chance.getrandbits(32)
        self.bank = Bank(Pen(self.letters), self.chance)
        self.troupes: list[Troupe] = []
        self.born: dict[int, int] = {}
        self.stop = False
        self.reported = 0.0

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Let those that play end, and report."""
        self.stop = True

    def run(self) -> Tally:
        """All of it. Raises: Wrong, and whatever else the library lets happen."""
        begun = time.monotonic()
        clock = Clock()
        try:
            self._look(0.0)
            while True:
                passed = time.monotonic() - begun - clock.stopped_s
                over = self.stop or passed >= self.limit_s
                if over and not self.troupes:
                    break
                self._fill(over, clock)
                self._round(clock)
                if not self.troupes:
                    self._look(passed)
                self.tally.seconds, self.tally.stopped_s = passed, clock.stopped_s
                self._report(passed)
            self._look(self.tally.seconds)
            self.bank.check_home()
            return self.tally
        finally:
            clock.close()
            for troupe in self.troupes:
                troupe.abandon()
            self.bank.close()

    def _fill(self, over: bool, clock: Clock) -> None:
        """New troupes, but for the moments when all are to be gone."""
        due = self.tally.troupes // QUIET_EVERY >= len(self.tally.quiet)
        while not over and not due and len(self.troupes) < TROUPES:
            troupe = Troupe(self.bank, self.chance, self.letters, self._lendings)
            self.troupes.append(troupe)
            self.born[id(troupe)] = clock.ticks

    def _lendings(self) -> list[Lending]:
        return [task for troupe in self.troupes for task in troupe.tasks if isinstance(task, Lending)]

    def _round(self, clock: Clock) -> None:
        """A bit of everything."""
        busy = sum(troupe.step() for troupe in self.troupes)
        live = {n: end for troupe in self.troupes for n, end in troupe.ends.items()}
        self.bank.sweep(lambda lane: lane not in live or live[lane].ended is not None)
        for troupe in list(self.troupes):
            if troupe.stage == "over":
                self._count(troupe)
            elif clock.ticks - self.born[id(troupe)] > self.patience_s:
                troupe.show_stacks()
                raise Wrong(f"no end after {self.patience_s} s: {troupe.describe()}\n  away: {self.bank.loans}")
        if not busy:
            bulk.current_domain().wait_for(lambda: False, LOOK_S)  # whoever asks for something is served

    def _count(self, troupe: Troupe) -> None:
        self.troupes.remove(troupe)
        del self.born[id(troupe)]
        self.tally.troupes += 1
        self.tally.kills += len(troupe.victims)
        for sums in troupe.sums:
            self.tally.transfers += sums.taken
            self.tally.bytes += sums.taken_bytes
            self.tally.bytes_lost += sums.lost_bytes
            self.tally.refused += sums.refused
        self.tally.reclaimed = self.bank.reclaimed

    def _look(self, passed: float) -> None:
        """Nobody is there: what does this process have?"""
        gc.collect()
        self.bank.check_home()
        foreign = [pool for pool in bulk.current_domain().pools.values() if pool.id not in self.bank.owners]
        channels = list(bulk.current_domain().channels.values())
        if foreign or channels:
            raise Wrong(f"nobody is there, and {foreign} and {channels} are left")
        self.tally.quiet.append((passed, len(os.listdir("/proc/self/fd")), resident_kib()))

    def _report(self, passed: float) -> None:
        if passed - self.reported >= 60:
            self.reported = passed
            print(line_of(self.tally), flush=True)


def resident_kib() -> int:
    """Memory of this process alone, without what it shares with others."""
    with open("/proc/self/smaps_rollup") as text:
        return sum(int(line.split()[1]) for line in text if line.startswith(("Private_Clean", "Private_Dirty")))


def line_of(tally: Tally) -> str:
    """Where it stands."""
    _, descriptors, memory = tally.quiet[-1]
    judged = f"{tally.transfers:,} transfers, {tally.bytes / 1e9:.2f} GB judged"
    left = f"{tally.reclaimed} buffers back by leases, {descriptors} descriptors, {memory:,} KiB"
    return f"{tally.seconds:6.0f} s: {tally.troupes} troupes, {tally.kills} kills survived, {judged}, {left}"
