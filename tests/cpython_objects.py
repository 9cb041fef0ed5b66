"""CPython's own tests of multiprocessing's queues and connections, with our Pipe and queues in their place.

    python tests/cpython_objects.py fork|spawn|forkserver [--allow-pickle] [CLASS ...]

Children that multiprocessing starts import this file as their main module, so they are patched as well.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import multiprocessing.queues
import sys
import unittest

import bulktransfer as bulk

# What is run: these classes, as far as they are about processes (their other halves use threads or a manager).
CLASSES = {
    "WithProcessesTestQueue",
    "WithProcessesTestConnection",
    "WithProcessesTestPoll",
    "WithProcessesTestPicklingConnections",
    "WithProcessesTestPollEintr",
    "TestWait",
    "TestSimpleQueue",
    "TestNoForkBomb",
    "TestIgnoreEINTR",
    "TestTimeouts",
    "TestStdinBadfiledescriptor",
    "TestFlags",
    "WithProcessesTestSubclassingProcess",
}

# What cannot pass, and why.
# Under --allow-pickle, where the kernel is not asked who sends, they pass.
CREDENTIALS = "a receiver that is not ours finds the kernel's word about the sender where it expects a descriptor"
CANNOT: dict[str, str] = {
    "WithProcessesTestConnection.test_fd_transfer": CREDENTIALS,
    "WithProcessesTestConnection.test_large_fd_transfer": CREDENTIALS,
}
if "forkserver" in sys.argv:
    CANNOT["TestIgnoreEINTR.test_ignore"] = (
        "it signals a child that should wait in a big send_bytes until that is received; ours does not wait, and the "
        "child may be gone"
    )
ALLOW_PICKLE = "--allow-pickle" in sys.argv


def patch() -> None:
    """Have multiprocessing hand out ours."""
    for name in ("Pipe", "Queue", "JoinableQueue", "SimpleQueue"):
        ours = functools.partial(bulk.Pipe, allow_pickle=ALLOW_PICKLE) if name == "Pipe" else getattr(bulk, name)
        setattr(multiprocessing, name, ours)
        if name != "SimpleQueue":  # only Pool takes one there, and reaches into its locks
            setattr(multiprocessing.connection if name == "Pipe" else multiprocessing.queues, name, ours)
            setattr(multiprocessing.context.BaseContext, name, staticmethod(ours))


patch()

METHODS = ("fork", "spawn", "forkserver")
_METHOD = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] in METHODS else "spawn"

from test import _test_multiprocessing as theirs  # noqa: E402  (after the patch: its classes keep what they find)

# At import, so that children find the classes by name.
theirs.install_tests_in_module_dict(globals(), _METHOD)


def suite() -> unittest.TestSuite:
    """The chosen tests."""
    chosen = unittest.TestSuite()
    wanted = set(sys.argv[2:]) & CLASSES or CLASSES
    for name in sorted(wanted & set(globals())):
        for test in unittest.defaultTestLoader.loadTestsFromTestCase(globals()[name]):
            name_of_test = ".".join(test.id().split(".")[-2:])
            if CANNOT.get(name_of_test) in ((None, CREDENTIALS) if ALLOW_PICKLE else (None,)):
                chosen.addTest(test)
            else:
                print(f"{name_of_test} is left out: {CANNOT[name_of_test]}", file=sys.stderr)
    return chosen


def main() -> int:
    """Run them; 0 if all passed."""
    globals()["setUpModule"]()
    try:
        outcome = unittest.TextTestRunner(verbosity=2).run(suite())
    finally:
        globals()["tearDownModule"]()
    return 0 if outcome.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
