"""The scripts of benchmarks/block, small: every client of the NBD face, through the client of Figure 7.1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "benchmarks" / "block"


@pytest.mark.watchdog(240)
def test_every_client_gets_what_it_wrote_through_figure_7_1() -> None:
    command = [sys.executable, str(SCRIPTS / "clients.py"), "--ways", "client", "--size", "64M", "--files", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode == 2:
        pytest.skip("none of the clients is installed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
