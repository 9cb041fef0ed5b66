"""`bulk bench queue`: objects through a queue, ours and others' in turn.

Knows: an adapter a library, and that a library may not be installed. Must not know: how a queue works.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import bulktransfer as bulk

from . import options
from .machine import CannotMeasure, quiet
from .report import Report, plain, verdict_text
from .shared import WrongSum
from .stats import ratio

SMALL = 100  # bytes
SMALL_AT_LEAST = 1 / 1.2
LARGE, LARGE_AT_LEAST = 16 << 20, 10.0
REFERENCE = "multiprocessing"
TURNS = 2  # of each queue before the first that counts
PATIENCE_S = 300.0

Turn = Callable[[Callable[[], Any]], float]  # puts what is made, so and so often, and says how many seconds it took


def _ours() -> Any:
    return bulk.Queue()


def _multiprocessings() -> Any:
    return multiprocessing.get_context("spawn").Queue()


def _torchs() -> Any:
    return importlib.import_module("torch.multiprocessing").get_context("spawn").Queue()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench queue`."""
    parser.add_argument(
        "--size",
        type=options.sizes,
        default=options.sizes("1MiB,16MiB,256MiB"),
        metavar="SIZE[,SIZE…]",
        help="of the arrays; default: 1MiB,16MiB,256MiB",
    )
    parser.add_argument("--objects", type=options.count, default=10_000, help="small ones a turn (default 10,000)")
    parser.add_argument("--bytes", type=options.size, default=256 << 20, help="of arrays a turn (default 256MiB)")
    parser.add_argument("--pairs", type=options.pairs, default=7, help="interleaved turns of each (default 7)")
    parser.add_argument("--only", choices=PEERS, action="append", help="beside multiprocessing's (may be given again)")
    options.add_output(parser)


def run(args: argparse.Namespace) -> Report:
    """Put into one process and get in another, each queue in its turn. Raises: CannotMeasure; WrongSum."""
    if importlib.util.find_spec("numpy") is None:
        raise CannotMeasure("the arrays are NumPy's, which is not installed")
    import numpy as np

    report = Report("queue", plain(args))
    names = []
    for name, (needs, _) in PEERS.items():
        if args.only and name not in (*args.only, "ours", REFERENCE):
            continue
        if needs and importlib.util.find_spec(needs) is None:
            report.add_remark(f"{name} is not installed: left out")
        else:
            names.append(name)
    rows: list[tuple[object, ...]] = []
    small = b"x" * SMALL
    rows += _compare(report, names, "100 bytes", lambda _: small, SMALL, args.objects, args.pairs, SMALL_AT_LEAST)
    for size in args.size:
        array = np.ones(size, np.uint8)
        count = max(1, min(1000, args.bytes // size))
        limit = LARGE_AT_LEAST if size == LARGE else None
        rows += _compare(report, names, report.size(size), _wrapper(array), size, count, args.pairs, limit)
    headings = ["objects", "queue", "objects/s", "MB/s", f"times {REFERENCE}'s"]
    report.add_table("Put in one process, got in another; medians", headings, rows)
    report.finish()
    return report


def _wrapper(array: Any) -> Callable[[str], Any]:
    """The array as each library's own thing; a new tensor each time, since torch moves one into shared memory once."""

    def wrapped(name: str) -> Any:
        return importlib.import_module("torch").from_numpy(array) if name == "torch" else array

    return wrapped


def _compare(
    report: Report,
    names: list[str],
    what: str,
    thing_for: Callable[[str], Any],
    size: int,
    count: int,
    pairs: int,
    limit: float | None,
) -> Iterator[tuple[object, ...]]:
    rates: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        turns = {name: stack.enter_context(PEERS[name][1](count, size)) for name in names}
        for number in range(TURNS + pairs):
            for name, turn in turns.items():
                rate = count / turn(functools.partial(thing_for, name))
                if number >= TURNS:
                    rates[name].append(rate)
    report.data[what] = {"count": count, "per_s": rates}
    found = ratio(rates["ours"], rates[REFERENCE])
    verdict = found.at_least(limit) if limit else None
    report.add_remark(verdict_text(f"{what}, ours as a multiple of {REFERENCE}'s", found, limit or 0, verdict))
    for name in names:
        rate = statistics.median(rates[name])
        yield what, name, rate, rate * size / 1e6, ratio(rates[name], rates[REFERENCE]).median


@contextlib.contextmanager
def _process(name: str, make: Callable[[], Any], count: int, size: int) -> Iterator[Turn]:
    """A process that gets from the queue that `make` makes."""
    queue = make()
    here, there = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("spawn").Process(target=consume, args=(queue, there, count), daemon=True)
    process.start()
    there.close()

    def turn(thing: Callable[[], Any]) -> float:
        with quiet():
            start_s = time.perf_counter()
            for _ in range(count):
                queue.put(thing())
            if not here.poll(PATIENCE_S):
                raise CannotMeasure(f"{name}'s consumer did not get {count} objects of {size} bytes in {PATIENCE_S} s")
            got = here.recv()
            seconds = time.perf_counter() - start_s
        _check(name, got, count * size)
        return seconds

    try:
        if not here.poll(PATIENCE_S) or here.recv() != "ready":
            raise CannotMeasure(f"{name}'s consumer did not start")
        yield turn
    finally:
        process.kill()
        process.join()
        process.close()
        here.close()
        queue.close()
        queue.cancel_join_thread()


def consume(queue: Any, there: Any, count: int) -> None:
    """Get `count` objects, look at each page, say how many bytes they were; again and again."""
    there.send("ready")
    while True:
        got = 0
        for _ in range(count):
            thing = queue.get()
            got += looked_at(thing)
            thing = None  # the memory may go back before the next one comes
        there.send(got)


def looked_at(thing: Any) -> int:
    """The bytes of an object whose pages are looked at; another number if one of them is wrong."""
    return len(thing) if isinstance(thing, bytes) else len(thing) + int(thing[::4096].sum()) - len(thing[::4096])


@contextlib.contextmanager
def _actor(count: int, size: int) -> Iterator[Turn]:
    """An actor of Ray's that gets things as arguments of calls: faster than ray.util.queue, where each goes twice."""
    from .rivals import clusters  # with NumPy

    class Consumer:
        got = 0

        def take(self, thing: Any) -> None:
            self.got += looked_at(thing)

        def taken(self) -> int:
            got, self.got = self.got, 0
            return got

    with clusters.ray_started() as ray:
        actor = ray.remote(num_cpus=1)(Consumer).remote()
        take = actor.take.options(num_returns=0)

        def taken() -> int:
            try:
                return int(ray.get(actor.taken.remote(), timeout=PATIENCE_S))
            except TimeoutError:
                raise CannotMeasure(
                    f"ray's actor did not get {count} objects of {size} bytes in {PATIENCE_S} s"
                ) from None

        def turn(thing: Callable[[], Any]) -> float:
            with quiet():
                start_s = time.perf_counter()
                for _ in range(count):
                    take.remote(thing())
                got = taken()  # behind all of them
                seconds = time.perf_counter() - start_s
            _check("ray", got, count * size)
            return seconds

        taken()  # it has started
        yield turn


def _check(name: str, got: int, sent: int) -> None:
    if got != sent:
        raise WrongSum(f"{name}'s consumer got {got} bytes of {sent}")


# The name of what must be installed; a consumer of things of some size, so many a turn.
PEERS: dict[str, tuple[str, Callable[[int, int], AbstractContextManager[Turn]]]] = {
    "ours": ("", functools.partial(_process, "ours", _ours)),
    REFERENCE: ("", functools.partial(_process, REFERENCE, _multiprocessings)),
    "torch": ("torch", functools.partial(_process, "torch", _torchs)),
    "ray": ("ray", _actor),
}
