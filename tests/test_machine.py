"""The library does what the specification does, step by step; and the comparison notices when it does not."""

from __future__ import annotations

import textwrap

import pytest

import bulktransfer as bulk
import worlds  # noqa: F401 - it starts the helper thread before descriptors are counted
from bulktransfer import states
from bulktransfer._native import kernel
from bulktransfer.spec import mistakes
from bulktransfer.spec import model as m
from bulktransfer.testing import Subject, nursery
from bulktransfer.testing.machine import PLANS, main, run
from bulktransfer.testing.sidebyside import Discrepancy, SideBySide

nursery.ready()  # while tests are collected, so that no test seems to have left it behind

LOCAL, SHM = Subject("local:", processes=False), Subject("shm:")
FAR = Subject("tcp://127.0.0.1:0"), Subject("fullcopy:")
LEVELS = [(subject, trust) for subject in (LOCAL, SHM) for trust in subject.trusts]
IDS = [f"{subject.scheme}-{trust.name}" for subject, trust in LEVELS]


@pytest.mark.watchdog(180)
@pytest.mark.parametrize("plan", [name for name in PLANS if name != "loopback"])
@pytest.mark.parametrize(("subject", "trust"), LEVELS, ids=IDS)
def test_the_library_and_the_specification_do_the_same(subject: Subject, trust: bulk.Trust, plan: str) -> None:
    counted = run(subject, trust, PLANS[plan], examples=5, steps=40)
    assert counted["systems"] >= 5
    assert counted["steps"] > 40  # which steps are drawn depends on the modules that are loaded, too


@pytest.mark.parametrize(("subject", "trust"), LEVELS, ids=IDS)
def test_within_one_domain_too(subject: Subject, trust: bulk.Trust) -> None:
    """Where the kernel says so; over a stream it is the peer's word, and a copy to oneself is refused on arrival."""
    assert run(subject, trust, PLANS["loopback"], examples=5, steps=40, may_end=False)["steps"] > 40


@pytest.mark.watchdog(180)
@pytest.mark.parametrize("plan", ["pair", "receive-master", "chain", "inlet", "fan"])
@pytest.mark.parametrize("processes", [False, True], ids=["domains", "processes"])
@pytest.mark.parametrize("subject", FAR, ids=[subject.scheme for subject in FAR])
def test_over_a_stream_too(subject: Subject, plan: str, processes: bool) -> None:
    """While channels live, and no buffer has two ways to one domain: its twin goes to whoever's bytes come first."""
    counted = run(subject, bulk.Trust.NONE, PLANS[plan], examples=5, steps=40, processes=processes, may_end=False)
    assert counted["steps"] > 40


@pytest.mark.watchdog(180)
@pytest.mark.parametrize("plan", ["pair", "chain", "diamond"])
@pytest.mark.parametrize(("subject", "trust"), [at for at in LEVELS if at[0].processes], ids=IDS[len(LOCAL.trusts) :])
def test_processes_that_die_do_the_same(subject: Subject, trust: bulk.Trust, plan: str) -> None:
    counted = run(subject, trust, PLANS[plan], examples=3, steps=40, processes=True)
    assert counted["systems"] >= 3


# -- the comparison itself -----------------------------------------------------------------------------------------

SEEDED = {
    mistakes.RELEASE_WITH_COPIES_OUT: "chain",  # rule 6
    mistakes.MOVE_WITH_COPIES_OUT: "pair",  # rule 5
    mistakes.DETACHED_REUSED: "pair",  # rule 16
    mistakes.REMOVED_WHILE_BUSY: "pair",  # rule 14
    mistakes.DROPPED_WHILE_CONNECTED: "pair",
}


@pytest.mark.watchdog(180)
@pytest.mark.parametrize("mistake", SEEDED)
def test_a_mistake_in_the_specification_is_noticed(mistake: str) -> None:
    with pytest.raises(Discrepancy):
        run(LOCAL, bulk.Trust.FULL, PLANS[SEEDED[mistake]], examples=200, mistakes=frozenset([mistake]), shrink=False)


@pytest.mark.watchdog(180)
def test_a_library_that_uses_a_detached_buffer_again_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(kernel, "hung_up", lambda fd: True)  # "everybody let go"
    with pytest.raises(Discrepancy, match=r"(?s)closes|destroy"):
        run(LOCAL, bulk.Trust.FULL, PLANS["pair"], examples=200, shrink=False)


@pytest.mark.watchdog(180)
def test_a_library_that_releases_with_copies_out_is_noticed(spawn) -> None:
    """Rule 6's refusal is a missing row of the table: here it is there when the table is compiled."""
    script = """
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location("bulktransfer.states", "PLACE")
    states = sys.modules["bulktransfer.states"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(states)
    held, release = states.BufferState.READ_ONLY, states.BufferAct.RELEASE
    for when in (states.When.OUT_LAST, states.When.OUT_MANY):
        row = states.BufferRow(held, release, states.BufferState.INVALID, when, in_=-1)
        states.BUFFER_TABLE += (row,)

    import bulktransfer as bulk
    from bulktransfer.testing import Subject
    from bulktransfer.testing.machine import PLANS, run
    from bulktransfer.testing.sidebyside import Discrepancy
    try:
        local = Subject("local:", processes=False)
        run(local, bulk.Trust.FULL, PLANS["chain"], examples=200, shrink=False, may_end=False)
    except Discrepancy as found:
        assert "the library: accepted; the model: CopiesOutstandingError" in str(found), found
    else:
        raise SystemExit("nothing was noticed")
    """
    spawn(textwrap.dedent(script).replace("PLACE", states.__file__), verbatim=True).join(timeout_s=150)


def test_contents_that_differ_are_noticed() -> None:
    with SideBySide(LOCAL, bulk.Trust.FULL, PLANS["pair"]) as it:
        it.send("copy", 0, 0, 0)
        it.receive(0, m.SINK)
        it.seats[0].call("scribble", 0, 0, b"?")
        with pytest.raises(Discrepancy, match="buffer 0 in domain 0 holds b'\\?'"):
            it.send("copy", 0, 0, 1)


def test_the_long_run_counts_its_steps(capsys) -> None:
    assert main(["--steps", "200", "--backend", "local", "--trust", "full", "--plan", "pair"]) == 0
    assert "local: trust FULL: " in capsys.readouterr().out
