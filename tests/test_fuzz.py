"""The fuzz targets hold over their seeds and what a die makes of them, the same in every run: see tests/fuzz."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fuzz.replay import Reached, inputs, seeds
from fuzz.targets import TARGETS, modules

FUZZ = Path(__file__).with_name("fuzz")
LITTLE = {"block_messages", "letters", "names", "nbd_requests"}  # of a module that does more than parse
RUNS = int(os.environ.get("BULK_FUZZ_RUNS", "300"))


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_keeps_its_promise_whatever_comes(name):
    if name == "labels":
        pytest.importorskip("numpy")
    target = TARGETS[name]
    with target.make() as run:
        for data in inputs(name, RUNS, target.size_max):
            run(data)


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"channel", "labels"}))
def test_the_seeds_reach_most_of_a_parser(name):
    target = TARGETS[name]
    with target.make() as run, Reached(modules(target)) as reached:
        for data in inputs(name, 200, target.size_max):
            run(data)
    assert len(seeds(name)) >= 3
    assert reached.lines > (0.12 if name in LITTLE else 0.4) * reached.total


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
@pytest.mark.watchdog(180)
def test_the_native_targets_hold_under_sanitizers(tmp_path):
    command = ["make", "-j2", "-C", str(FUZZ), "check", f"BUILD={tmp_path}", f"RUNS={RUNS * 10}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("executions") == 5
