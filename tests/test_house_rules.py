"""The house rules hold: what they promise to catch is caught."""

from __future__ import annotations

import os
import re
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_pytest(tmp_path: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Run `source` as a test file under this directory's conftest, in a pytest of its own."""
    for name in ("conftest.py", "spawning.py"):
        (tmp_path / name).symlink_to(HERE / name)
    (tmp_path / "test_it.py").write_text(source)
    markers = "markers =\n  watchdog(seconds): x\n  leaks_fds: x\n"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = --strict-markers\npythonpath = .\n{markers}")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)]
    env = {**os.environ, "BULK_TEST_TMP": str(tmp_path)}  # the watchdog leaves it no time to clean up
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)


def test_the_watchdog_ends_a_hang_with_a_traceback(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        "import pytest, threading\n@pytest.mark.watchdog(0.5)\ndef test_hangs():\n    threading.Event().wait()\n",
    )
    assert done.returncode == 1
    assert "test_hangs" in done.stderr
    assert "Timeout" in done.stderr


def test_the_watchdog_watches_the_teardown_of_a_failed_test(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        "import pytest, threading\n"
        "@pytest.fixture\n"
        "def stuck():\n"
        "    yield\n"
        "    threading.Event().wait()\n"
        "@pytest.mark.watchdog(0.5)\n"
        "def test_fails(stuck):\n"
        "    assert False\n",
    )
    assert done.returncode == 1
    assert "in stuck" in done.stderr


def test_an_open_descriptor_fails_the_test_that_left_it(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        "import os, pytest, conftest\n"
        "conftest.SETTLE_S = 0.1\n"
        "def test_leaks():\n"
        "    os.open('/dev/null', os.O_RDONLY)\n"
        "@pytest.mark.leaks_fds\n"
        "def test_says_so():\n"
        "    os.open('/dev/null', os.O_RDONLY)\n"
        "def test_closes():\n"
        "    os.close(os.open('/dev/null', os.O_RDONLY))\n",
    )
    assert "3 passed, 1 error" in done.stdout
    assert re.search(r"left descriptors open: \{\d+: '/dev/null'\}", done.stdout)


def test_a_child_that_remains_fails_the_test_that_left_it(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        "import os, signal, conftest\n"
        "conftest.SETTLE_S = 0.1\n"
        "def test_leaves_a_zombie():\n"
        "    global pid\n"
        "    pid = os.spawnlp(os.P_NOWAIT, 'true', 'true')\n"
        "def test_is_clean():\n"
        "    os.waitpid(pid, 0)\n",
    )
    assert "2 passed, 1 error" in done.stdout
    assert "left a child process behind" in done.stdout


def test_each_test_has_a_private_directory_with_a_short_path(rendezvous_dir: Path) -> None:
    assert os.environ["BULKTRANSFER_DIR"] == str(rendezvous_dir)
    assert stat.S_IMODE(rendezvous_dir.stat().st_mode) == 0o700
    assert len(os.fsencode(rendezvous_dir)) < 30


def test_spawn_runs_a_function_in_a_process_of_its_own(spawn) -> None:
    def answer(pipe, offset):
        import os

        pipe.send((pipe.recv() + offset, os.getpid(), os.getppid()))
        print("done")

    child = spawn(answer, 40)
    child.send(2)
    assert child.receive() == (42, child.pid, os.getpid())
    assert child.join() == "done\n"


def test_spawn_reports_what_a_failed_child_printed(spawn) -> None:
    child = spawn("raise RuntimeError('out of luck')")
    with pytest.raises(AssertionError, match="out of luck"):
        child.receive()
    child.join(1)


def test_spawn_refuses_a_function_that_needs_its_surroundings(spawn) -> None:
    value = 3

    def closure(pipe):
        pipe.send(value)

    with pytest.raises(ValueError, match="variables around it"):
        spawn(closure)


def test_a_spawned_process_may_crash_on_purpose(spawn) -> None:
    child = spawn("import os; os.abort()")
    child.join(-signal.SIGABRT)
    other = spawn("pipe.recv()")
    other.kill()


def test_a_spawned_process_ends_with_the_run(spawn) -> None:
    def parent(pipe):
        import sys
        from pathlib import Path

        sys.path.insert(0, pipe.recv())
        from spawning import Spawner

        child = Spawner(Path(pipe.recv())).spawn("pipe.recv()")
        pipe.send(child.pid)
        pipe.recv()

    child = spawn(parent)
    child.send(str(HERE))
    child.send(os.environ["BULKTRANSFER_DIR"])
    grandchild = os.pidfd_open(child.receive())
    try:
        child.kill()
        assert select.select([grandchild], [], [], 30)[0]
    finally:
        os.close(grandchild)
