"""python corpus.py NAME FOLDER: the seeds of a target as files, as libFuzzer wants them."""

from __future__ import annotations

import sys
from pathlib import Path

name, folder = sys.argv[1:]
path = Path(__file__).with_name("seeds") / f"{name}.hex"
for number, line in enumerate(path.read_text().split() if path.exists() else []):
    (Path(folder) / f"seed-{number}").write_bytes(bytes.fromhex(line))
