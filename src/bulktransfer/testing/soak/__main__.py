"""`python -m bulktransfer.testing.soak`: arguments in, a report out.

Knows: how a soak is asked for, and how it is told of. Must not know: how it goes.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
import traceback
import warnings

import bulktransfer as bulk

from .hub import PATIENCE_S, Hub, Tally, line_of

OK, WRONG = 0, 1


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser(prog="python -m bulktransfer.testing.soak", description=__doc__)
    made.add_argument("--seconds", type=float, default=60.0, help="how long new players come; default: 60")
    made.add_argument("--seed", type=int, help="of everything that is chosen at random; default: one that is printed")
    made.add_argument("--patience", type=int, default=PATIENCE_S, help="seconds without an end that are a hang")
    return made


def run(seconds: float, seed: int | None, patience_s: int = PATIENCE_S) -> int:
    """Soak, and print what was seen; the exit status."""
    seed = random.SystemRandom().getrandbits(32) if seed is None else seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bulk.SecurityWarning)
        hub = Hub(seconds, seed, patience_s)
        before = [signal.signal(number, hub.interrupt) for number in (signal.SIGINT, signal.SIGTERM)]
        print(
            f"soak of {seconds:g} s with seed {seed}, bulktransfer {bulk.__version__}, from {time.ctime()}", flush=True
        )
        try:
            tally = hub.run()
        except BaseException:  # noqa: BLE001 - whatever it is, it is what the soak is for
            traceback.print_exc()
            print(f"WRONG after {hub.tally.seconds:.0f} s, seed {seed}: see above\n{line_of(hub.tally)}", flush=True)
            return WRONG
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
                signal.signal(number, handler)
    report(tally)
    return OK


def report(tally: Tally) -> None:
    """What was seen."""
    (_, descriptors_before, memory_before), (_, descriptors, memory) = tally.quiet[0], tally.quiet[-1]
    warm = tally.quiet[min(1, len(tally.quiet) - 1)]
    print(
        f"""\
soak: seed {tally.seed}, {tally.seconds:.0f} s (stopped for {tally.stopped_s:.0f} s more)
transfers done and judged   {tally.transfers:,} ({tally.bytes / 1e9:.2f} GB)
refused and rolled back     {tally.refused}
processes killed, survived  {tally.kills} (in {tally.troupes} troupes)
buffers back by leases      {tally.reclaimed}
bytes lost                  {tally.bytes_lost}
descriptors                 {descriptors_before} at the start, {warm[1]} when warm, {descriptors} at the end
private memory              {memory_before:,} KiB at the start, {warm[2]:,} when warm, {memory:,} at the end
""",
        end="",
        flush=True,
    )


if __name__ == "__main__":
    args = parser().parse_args()
    sys.exit(run(args.seconds, args.seed, args.patience))
