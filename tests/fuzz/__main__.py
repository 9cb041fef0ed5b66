"""python -m tests.fuzz: every Python target over its seeds and what a die makes of them; how much of each it reached.

python -m tests.fuzz [--runs N] [TARGET ...]            deterministic: the same in every run
python -m tests.fuzz --atheris TARGET [--seconds N]     guided by coverage, with the package `atheris`
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from fuzz.replay import Reached, inputs, seeds  # noqa: E402
from fuzz.targets import TARGETS, modules  # noqa: E402


def replay(name: str, runs: int) -> None:
    target = TARGETS[name]
    done = 0
    with target.make() as run:
        for data in inputs(name, runs, target.size_max):
            try:
                run(data)
            except BaseException:
                print(f"{name}: fails on {data!r}", file=sys.stderr)
                raise
            done += 1
        with Reached(modules(target)) as reached:
            for data in inputs(name, min(runs, 300), target.size_max):
                run(data)
    print(f"{name:16} {done:7} executions, {reached.lines} of {reached.total} lines of {', '.join(target.modules)}")


def guided(name: str, seconds: int) -> None:
    """Until a failure, or for `seconds`; what is new is kept in a folder outside the repository."""
    import atheris  # an extra: pip install atheris

    target = TARGETS[name]
    stack = contextlib.ExitStack()  # atheris ends the process
    with atheris.instrument_imports(include=["bulktransfer"]):
        modules(target)
        run = stack.enter_context(target.make())

    def one(data: bytes) -> Any:
        return run(bytes(data))

    corpus = Path(f"/tmp/bulk-fuzz-corpus/{name}")
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-print_final_stats=1", f"-max_len={target.size_max}", "-timeout=20"]
    options.append(f"-artifact_prefix={corpus}-")
    for number, data in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(data)
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=2000, help="inputs made from the seeds, a target")
    parser.add_argument("--atheris", metavar="TARGET", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.atheris:
        guided(options.atheris, options.seconds)
        return
    for name in options.targets or TARGETS:
        replay(name, options.runs)


main()
