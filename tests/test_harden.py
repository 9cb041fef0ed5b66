"""Between processes of one user trust NONE holds after `bulk.harden()`, and a warning says so where it is missing."""

from __future__ import annotations

import pytest

import bulktransfer as bulk
from bulktransfer import Direction, Trust
from worlds import PATIENCE_S


def bind_twice(pipe, addresses, hardens):
    """Bind to each address; say what was warned about, and whether the process can be dumped."""
    import ctypes
    import warnings

    import bulktransfer as bulk

    if hardens:
        bulk.harden()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        channels = [bulk.bind(address, timeout=20) for address in addresses]
    pipe.send([(w.category is bulk.SecurityWarning, str(w.message)) for w in caught])
    pipe.send(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
    pipe.recv()
    for channel in channels:
        channel.close()


@pytest.mark.parametrize(("trust", "hardens", "warned"), [("NONE", False, 1), ("NONE", True, 0), ("HALF", False, 0)])
def test_the_first_channel_that_isolates_nobody_warns_once(spawn, trust, hardens, warned):
    made = [bulk.create("shm:", direction=Direction.TX, trust=Trust[trust]) for _ in range(2)]
    try:
        child = spawn(bind_twice, [chan.address for chan in made], hardens)
        for chan in made:
            chan.wait_bound(PATIENCE_S)
        warnings = child.receive()
        assert len(warnings) == warned
        assert all(ours and "bulk.harden()" in text for ours, text in warnings)
        assert child.receive() == (0 if hardens else 1)
        child.send("done")
        child.join()
    finally:
        for chan in made:
            chan.close()
