"""The NBD face on a memory store beside nbdkit's, on a UNIX socket, in one run; prints a table.

    python benchmarks/block/speed.py --rounds 3 --runtime 2

The server has core 0, the client core 1. Each round measures both, one after the other; figures are medians, the ratio
is the median of the rounds' ratios. Exit status: 0 measured, 2 a program is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from serving import have, nbd, nbdkit, run

HERE = Path(__file__).parent
SIZE = 1 << 30
LEAST = {"nbdcopy read": 0.7, "nbdcopy write": 0.7, "fio 1 MiB qd 16 read": 0.7, "fio 1 MiB qd 16 write": 0.7}
JOBS = [  # profile, section, name, direction, unit
    ("fio-sequential.fio", "write", "fio 1 MiB qd 16 write", "write", "GB/s"),
    ("fio-sequential.fio", "read", "fio 1 MiB qd 16 read", "read", "GB/s"),
    ("fio-random.fio", "randwrite-32", "fio 4 KiB qd 32 random write", "write", "k/s"),
    ("fio-random.fio", "randread-32", "fio 4 KiB qd 32 random read", "read", "k/s"),
    ("fio-random.fio", "randread-1", "fio 4 KiB qd 1 random read", "read", "k/s"),
]
UNITS = {name: unit for _, _, name, _, unit in JOBS} | {"nbdcopy read": "GB/s", "nbdcopy write": "GB/s"}


def measure(uri: str, full: Path, runtime: int) -> dict[str, float]:
    """Everything, once: GB/s and thousand requests a second."""
    found = {}
    for name, source, target in (("nbdcopy write", str(full), uri), ("nbdcopy read", uri, "null:")):
        begin = time.perf_counter()
        run("nbdcopy", source, target, core=1)
        found[name] = SIZE / 1e9 / (time.perf_counter() - begin)
    for profile, section, name, direction, unit in JOBS:
        said = run(
            "fio", "--output-format=json", f"--section={section}", HERE / profile,
            env={"URI": uri, "RUNTIME": str(runtime)}, core=1,
        )  # fmt: skip
        (job,) = json.loads(said[said.index("{") :])["jobs"]
        figures = job[direction]
        found[name] = figures["bw_bytes"] / 1e9 if unit == "GB/s" else figures["iops"] / 1e3
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runtime", type=int, default=2, help="seconds of each fio job")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not have("nbdkit", "nbdcopy", "fio", "taskset"):
        print("it takes nbdkit, nbdcopy, fio and taskset", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="blk-") as name:
        directory = Path(name)
        full = directory / "full"
        full.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
        with nbd(directory, f"memory:{SIZE}", core=0) as ours, nbdkit(directory, "1G", core=0) as theirs:
            rounds = [
                (measure(ours, full, args.runtime), measure(theirs, full, args.runtime)) for _ in range(args.rounds)
            ]
    if args.json:
        print(json.dumps(rounds))
        return 0
    print(f"{'':32}{'ours':>9}{'nbdkit':>9}{'':6}{'ratio':>7}{'(rounds)':>16}{'to reach':>10}")
    for what in rounds[0][0]:
        mine, other = ([pair[side][what] for pair in rounds] for side in (0, 1))
        ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
        print(
            f"{what:32}{statistics.median(mine):9.2f}{statistics.median(other):9.2f} {UNITS[what]:5}"
            f"{statistics.median(ratios):7.2f}{f'{ratios[0]:.2f}-{ratios[-1]:.2f}':>16}{LEAST.get(what, 0.4):10.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
