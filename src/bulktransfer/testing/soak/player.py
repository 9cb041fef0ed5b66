"""The process of a player: does its tasks until it is told to end, or killed.

Knows: its brief, the journal, the pipe to the auditor. Must not know: when it dies.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import random
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import bulktransfer as bulk

from .brief import Brief, Journal
from .ends import End
from .letters import Pen
from .tasks import assemble

_PR_SET_PDEATHSIG = 1
HELPERS = Counter({"anon_inode:[eventpoll]": 3, "anon_inode:[eventfd]": 2})
PATIENCE_LOOKS = 1000
LOOK_S = 0.02  # between looks at what no descriptor tells: a buffer that is kept, an order


class Player:
    """One that plays."""

    def __init__(self, brief: Brief, journal: Journal, domain: bulk.Domain) -> None:
        self.brief = brief
        self.domain = domain
        chance = random.Random(brief.seed)
        pen = Pen(brief.letters)
        self.ends = {n: End(lane, brief.player, journal, pen, domain) for n, lane in brief.lanes.items()}
        self.tasks = assemble(brief, self.ends, chance, domain)
        self.waits = bulk.WaitSet()
        for end in self.ends.values():
            self.waits.add(end.channel)

    def run(self, told: Callable[[], bool]) -> None:
        """Play until told to end, and then to the end. Raises: Wrong."""
        while not told():
            if not sum(task.step() for task in self.tasks):
                self._wait()
        while sum(task.finish() for task in self.tasks) < len(self.tasks):
            self._wait()
        self._drop_what_came_back()
        self.close()

    def _drop_what_came_back(self) -> None:
        """What leases, or the end of a lane without shared memory, gave back to whoever had handed it on."""
        for end in self.ends.values():
            for buffer in getattr(end.ended, "buffers", ()):
                if buffer.state is not bulk.BufferState.INVALID and not buffer.pool.home:
                    buffer.drop()

    def _wait(self) -> None:
        try:
            self.waits.wait(LOOK_S)
        except TimeoutError:
            return

    def close(self) -> None:
        """Leave everything."""
        for end in self.ends.values():
            end.close()
        self.waits.close()


def _remains(before: set[str]) -> list[str]:
    """Descriptors that were not there before, but for those of the helper threads, which stay."""
    names = {name: _target(name) for name in set(os.listdir("/proc/self/fd")) - before}
    new = Counter(target for target in names.values() if target and "/proc" not in target)
    return sorted((new - HELPERS).elements())


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:
        return ""


def _play(pipe: Connection[Any, Any], journal_fd: int) -> None:
    brief: Brief = pipe.recv()
    journal = Journal(journal_fd)
    domain = bulk.current_domain()
    before = set(os.listdir("/proc/self/fd"))
    player = Player(brief, journal, domain)
    pipe.send("here")
    player.run(lambda: pipe.poll(0))
    pipe.recv()
    del player
    for _ in range(PATIENCE_LOOKS):  # what was accepted still arrives, and is here until then
        gc.collect()
        if not _remains(before) and not domain.pools:
            break
        domain.wait_for(lambda: False, LOOK_S)
    pools = [repr(pool) for pool in domain.pools.values()]
    pipe.send((_remains(before), pools, [repr(channel) for channel in domain.channels.values()]))


def main(argv: list[str]) -> None:
    """The process. Raises: whatever ends it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(argv[3]):
        return
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the auditor ends it
    warnings.simplefilter("ignore", bulk.SecurityWarning)
    with Connection(int(argv[1])) as pipe:
        _play(pipe, int(argv[2]))


if __name__ == "__main__":
    main(sys.argv)
