"""The house rules that every test lives under.

- A watchdog ends the whole run, with a traceback of every thread, when a test hangs: no test needs a time limit of
  its own (`@pytest.mark.watchdog(seconds)` sets another).
- Each test has a rendezvous directory of its own ($BULKTRANSFER_DIR), short enough for a socket's name.
- After each test the process has the descriptors that it had before it, and no child.
- `spawn` starts real processes that end with the test.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from spawning import Child, Spawner

WATCHDOG_S = 60.0
LONGEST_S = 660.0  # the longest watchdog of a test, and some: who hands tests to workers hears nothing meanwhile
SETTLE_S = 5.0  # how long what ends by itself (a helper thread, a dying child) may take to be gone after a test

hypothesis.settings.register_profile("bulktransfer", deadline=None, print_blob=True)
hypothesis.settings.load_profile("bulktransfer")

_stderr = pytest.StashKey[int]()
_failed = pytest.StashKey[bool]()


# -- the watchdog --------------------------------------------------------------------------------------------------


def _watch(config: pytest.Config, seconds: float) -> None:
    if not config.getoption("usepdb"):
        faulthandler.dump_traceback_later(seconds, exit=True, file=config.stash[_stderr])


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)  # capturing replaces descriptor 2, and what is captured dies with the process
    _watch(config, 2 * WATCHDOG_S if not _hands_out(config) else LONGEST_S)  # for the collection
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the run was started in the background
    try:
        from bulktransfer import current_domain
        from bulktransfer.errors import SecurityWarning
    except ImportError:
        return  # the package is not built; the tests that need it say so better
    current_domain()  # it lives as long as the process, and so do its descriptors: no test leaves them behind
    # Most tests run isolated channels between unhardened processes of one user, and know it.
    config.addinivalue_line("filterwarnings", f"ignore::{SecurityWarning.__module__}.{SecurityWarning.__qualname__}")


def _hands_out(config: pytest.Config) -> bool:
    """Whether this process only hands tests to worker processes (pytest -n), each of which has its own watchdog."""
    return bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")


def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> None:
    if _hands_out(config):
        _watch(config, LONGEST_S)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there now stays: to look for garbage after each test is quick without it."""
    gc.collect()
    gc.freeze()


def _seconds(item: pytest.Item) -> float:
    marker = item.get_closest_marker("watchdog")
    return float(marker.args[0]) if marker else WATCHDOG_S


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    _watch(item.config, _seconds(item))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    _watch(item.config, _seconds(item))  # again: pytest's own faulthandler plugin calls it off when a test fails


def pytest_sessionfinish(session: pytest.Session) -> None:
    _watch(session.config, WATCHDOG_S)  # stays armed until the interpreter is gone: an exit that hangs is a bug too


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


# -- what a test leaves behind -------------------------------------------------------------------------------------


def _descriptors() -> dict[int, str]:
    """What each open descriptor of this process refers to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor that the listing itself used
    return found


def _leaked(before: dict[int, str]) -> dict[int, str]:
    return {fd: target for fd, target in _descriptors().items() if before.get(fd) != target}


def _child_remains() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _stop_multiprocessing_helpers() -> None:
    """End the servants that multiprocessing starts on first need and keeps until exit."""
    for module, name in (("resource_tracker", "_resource_tracker"), ("forkserver", "_forkserver")):
        servant = getattr(sys.modules.get(f"multiprocessing.{module}"), name, None)
        if servant is not None:
            servant._stop()


def _until(gone: Callable[[], bool]) -> bool:
    """Whether `gone` becomes true within SETTLE_S."""
    pause = threading.Event()
    deadline = time.monotonic() + SETTLE_S
    while not gone():
        if time.monotonic() > deadline:
            return False
        gc.collect()  # only now: it takes longer than most tests
        pause.wait(0.01)
    return True


@pytest.fixture(autouse=True)
def _house(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Set up before, and checked after, every other fixture of a test."""
    patch = pytest.MonkeyPatch()
    # Mode 0700, and short: a socket's name has 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="bulk-", dir=os.environ.get("BULK_TEST_TMP", "/tmp")))
    patch.setenv("BULKTRANSFER_DIR", str(directory))
    before = _descriptors()
    try:
        yield directory
        _stop_multiprocessing_helpers()
        if request.node.stash.get(_failed, False):
            return  # its traceback keeps alive what it had, and one failure is enough
        request.node.funcargs.clear()  # what fixtures made is finished, but pytest would keep it until after this
        assert _until(lambda: not _child_remains()), "the test left a child process behind"
        if request.node.get_closest_marker("leaks_fds") is None:
            assert _until(lambda: not _leaked(before)), f"the test left descriptors open: {_leaked(before)}"
    finally:
        patch.undo()
        shutil.rmtree(directory, ignore_errors=True)


# -- tools ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def rendezvous_dir(_house: Path) -> Path:
    """The directory where this test's `shm:` names live; a place for its files as well, with a short path."""
    return _house


@pytest.fixture
def spawn(_house: Path) -> Iterator[Callable[..., Child]]:
    """`spawn(function, *args)` or `spawn(source)` starts a Python process that ends with the test (see spawning.py)."""
    spawner = Spawner(Path(tempfile.mkdtemp(prefix="spawn-", dir=_house)))
    yield spawner.spawn
    spawner.end()


@pytest.fixture
def start(_house: Path) -> Iterator[Callable[..., Any]]:
    """`start("send", FILE, ADDRESS, cwd=…)` runs `bulk send …` as a process that ends with the test (commands.py)."""
    from commands import Command

    running: list[Command] = []

    def run(*arguments: str, **options: Any) -> Command:
        running.append(Command(*arguments, **options))
        return running[-1]

    yield run
    for command in running:
        command.end()
