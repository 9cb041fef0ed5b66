"""python -m tests.adversary [WORD ...]: do every attack whose name has a WORD in it, and print what came of each."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parents[1]))

import adversary.everything
from adversary.arena import strike
from adversary.registry import Attack, cases

PATIENCE_S = int(os.environ.get("BULK_ADVERSARY_PATIENCE_S", "60"))


class Hangs(BaseException):
    """An attack that takes so long has won."""


def too_long(*_: object) -> NoReturn:
    faulthandler.dump_traceback()
    raise Hangs


def outcome(attack: Attack, level: str) -> tuple[bool, str]:
    """Whether the victim stayed correct, and what was seen."""
    if attack.root and os.geteuid() != 0:
        return True, "not tried: it takes root"
    directory = tempfile.mkdtemp(prefix="bulk-", dir=os.environ.get("BULK_TEST_TMP", "/tmp"))
    os.environ["BULKTRANSFER_DIR"] = directory
    signal.alarm(PATIENCE_S)
    try:
        return True, strike(attack, level).outcome
    except (Exception, Hangs) as error:
        traceback.print_exc()
        return False, f"NOT WITHSTOOD: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        shutil.rmtree(directory, ignore_errors=True)


def main(words: list[str]) -> int:
    assert adversary.everything
    signal.signal(signal.SIGALRM, too_long)
    warnings.simplefilter("ignore", UserWarning)
    chosen = [case for case in cases() if not words or any(word in case[0].name for word in words)]
    lost = 0
    for attack, level in chosen:
        begin = time.monotonic()
        held, seen = outcome(attack, level)
        lost += not held
        print(
            f"{'ok  ' if held else 'LOST'}  {level:4}  {attack.name:58}  {seen}  ({time.monotonic() - begin:.1f} s)",
            flush=True,
        )
    print(f"{len(chosen)} attacks, {len(chosen) - lost} withstood")
    return 1 if lost else 0


sys.exit(main(sys.argv[1:]))
