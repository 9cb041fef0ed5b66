"""What a rival is, and the two processes that it works between.

Knows: a child on a core of its own that consumes while this process produces. Must not know: any library.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Protocol

from ..machine import quiet
from ..shared import SLOTS, check_sum
from ..worker import PartnerError

WINDOW = SLOTS
PATIENCE_S = 60
READY, START = "ready", "start"


class Rival(Protocol):
    """One end, of a library that is imported when it is made: a source where `sink` is false.

    mode: how it waits · note: how it is used.
    """

    mode: str
    note: str

    @staticmethod
    def shared(context: Any, size: int, tag: str) -> Any:
        """What both ends are given, made before the child starts; multiprocessing pickles it."""
        ...

    def __init__(self, *, sink: bool, size: int, shared: Any, share_core: bool) -> None: ...

    def produce(self, number: int) -> None:
        """Fill a buffer with the number, as 64-bit words, and hand it over; at most WINDOW are on their way."""
        ...

    def consume(self) -> int:
        """The sum of the words of the next buffer."""
        ...

    def flush(self) -> None:
        """Everything that was produced is on its way."""
        ...

    def close(self) -> None: ...


class Match:
    """A rival at work between this process and a child on `core`."""

    def __init__(self, kind: type[Rival], *, size: int, core: int, share_core: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.size = size
        tag = f"bulktransfer-{os.getpid()}-{secrets.token_hex(4)}"
        shared = kind.shared(context, size, tag)
        self._control, theirs = context.Pipe()
        arguments = (kind, size, shared, core, share_core, theirs)
        self._process = context.Process(target=_sink_main, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._rival = kind(sink=False, size=size, shared=shared, share_core=share_core)
            self._expect(READY)
        except BaseException:
            self._end()
            raise

    def fill(self, count: int) -> int:
        """The ns until the child has summed `count` buffers. Raises: WrongSum, PartnerError."""
        produce = self._rival.produce
        self._control.send(count)
        self._expect(START)
        with quiet():
            start_ns = time.perf_counter_ns()
            for number in range(count):
                produce(number)
            self._rival.flush()
            total = self._answer()
            elapsed_ns = time.perf_counter_ns() - start_ns
        check_sum(total, count, self.size)
        return elapsed_ns

    def close(self) -> None:
        """End the child, then this end."""
        with contextlib.suppress(OSError):
            self._control.send(0)
        self._rival.close()
        self._process.join(PATIENCE_S)
        self._end()

    def _end(self) -> None:
        self._control.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()

    def _expect(self, word: str) -> None:
        answer = self._answer()
        if answer != word:
            raise PartnerError(f"the rival's sink said {answer!r} instead of {word!r}")

    def _answer(self) -> Any:
        try:
            if not self._control.poll(PATIENCE_S):
                raise PartnerError(f"the rival's sink said nothing for {PATIENCE_S} s")
            answer = self._control.recv()
        except (EOFError, ConnectionError) as error:
            raise PartnerError("the rival's sink died") from error
        if isinstance(answer, Exception):
            raise PartnerError(f"the rival's sink: {type(answer).__name__}: {answer}")
        return answer


def _sink_main(kind: type[Rival], size: int, shared: Any, core: int, share_core: bool, control: Connection) -> None:
    os.sched_setaffinity(0, {core})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    try:
        rival = kind(sink=True, size=size, shared=shared, share_core=share_core)
        control.send(READY)
        for count in _counts(control):
            control.send(START)
            with quiet():
                total = sum(rival.consume() for _ in range(count))
            control.send(total)
        rival.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, the measuring side must hear of it
        with contextlib.suppress(OSError):
            control.send(PartnerError(f"{type(error).__name__}: {error}"))


def _counts(control: Connection) -> Iterator[int]:
    while True:
        signal.alarm(10 * PATIENCE_S)
        count = control.recv()
        if not count:
            return
        signal.alarm(PATIENCE_S)
        yield count
