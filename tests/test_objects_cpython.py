"""CPython's own tests of queues and connections pass with ours in their place; what is left out: cpython_objects.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "cpython_objects.py"
CORE = ["WithProcessesTestConnection", "WithProcessesTestPoll", "WithProcessesTestQueue"]

pytestmark = [
    pytest.mark.watchdog(300),
    pytest.mark.skipif(
        not importlib.util.find_spec("test") or not importlib.util.find_spec("test._test_multiprocessing"),
        reason="Python comes without its tests here (Debian: libpython3.11-testsuite)",
    ),
]


@pytest.mark.parametrize(
    "arguments",
    [["fork"], ["spawn", "--allow-pickle", *CORE], ["forkserver", *CORE]],
    ids=["fork", "spawn-allow-pickle", "forkserver"],
)
def test_cpythons_tests_pass(arguments: list[str]) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, env=env, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "\nRan " in done.stderr
