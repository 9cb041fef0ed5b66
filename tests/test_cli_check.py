"""`bulk check` runs the report's tests and tells what they saw, also when it is not what was to be seen."""

from __future__ import annotations

import json
import signal

import pytest

import bulktransfer as bulk
import worlds  # noqa: F401 - it starts the helper thread before descriptors are counted
from bulktransfer.cli.main import main
from bulktransfer.testing import MODES, Subject, guarantees
from bulktransfer.testing.guarantees import FAULTS, GOES_THROUGH, Saw
from bulktransfer.testing.places import Gone, There


@pytest.mark.watchdog(120)
def test_it_says_what_it_saw_and_exits_with_0(capsys) -> None:
    assert main(["check", "--backend", "shm", "--trust", "full", "--pin", "same"]) == 0
    out = capsys.readouterr().out
    assert "shm:, trust FULL, on one core" in out
    assert "All 6 tests saw what was expected." in out
    for promise in list(guarantees.TITLES.values())[2:]:
        assert promise in out


@pytest.mark.watchdog(120)
def test_it_speaks_json(capsys) -> None:
    assert main(["check", "--backend", "local", "--trust", "full", "--pin", "same", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["ok"]
    assert [test["test"] for test in whole["tests"]] == [0, 2, 3, 4, 5, 6]
    assert {(t["backend"], t["trust"], t["cores"]) for t in whole["tests"]} == {("local", "FULL", "same")}


def test_what_is_not_as_expected_is_said_and_exits_with_1(capsys, monkeypatch) -> None:
    right = guarantees.run

    def wrong(*args):
        found = right(*args)
        return guarantees.Finding(
            found.test, found.scheme, found.trust, found.mode, found.pin, Saw("nothing was refused"), found.expected
        )

    monkeypatch.setattr(guarantees, "tests_of", lambda trust: (0,))
    monkeypatch.setattr(guarantees, "run", wrong)
    assert main(["check", "--backend", "shm", "--trust", "full", "--pin", "same"]) == 1
    out = capsys.readouterr().out
    assert "WRONG, not: every byte is right" in out
    assert "1 of 1 tests saw something else" in out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--backend", "nowhere"], "the scheme 'nowhere' is unknown"),
        (["--backend", "shm", "--pin", "split"], "core"),
    ],
)
def test_what_cannot_be_tested_exits_with_2(capsys, monkeypatch, arguments: list[str], why: str) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    assert main(["check", *arguments]) == 2
    assert why in capsys.readouterr().err


def test_a_fault_is_seen_as_a_fault() -> None:
    """The pool leaves the sink's domain, and its addresses stay without access: at every trust level."""
    with There(Subject("shm:")) as there:
        source, sink = there.party(), there.party()
        guarantees.connect(source, sink, 0, bulk.Trust.FULL, MODES[0])
        source.call("allocate", 0, 1)
        guarantees.assign(source, sink, 0, 0)
        sink.call("stray", 0, 0, "write")
        sink.call("close", 0)
        with pytest.raises(Gone) as caught:
            sink.call("stray", 0, 0, "read")
        assert caught.value.signal == signal.SIGSEGV


@pytest.mark.parametrize("trust", list(bulk.Trust)[1:])
def test_what_is_expected_depends_on_the_trust_level(trust: bulk.Trust) -> None:
    for guarantee in guarantees.GUARANTEES:
        expected = guarantees.expected(guarantee, trust)
        if trust not in guarantees.FAULTING:
            assert expected.c == f"read {GOES_THROUGH}, write {GOES_THROUGH}"
        else:
            assert expected.c == f"read {guarantee.read}, write {FAULTS}"


def test_a_test_that_there_is_not_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 to 6"):
        guarantees.run(7, Subject("shm:"), bulk.Trust.FULL)


def test_the_pattern_differs_at_each_place_and_for_each_seed() -> None:
    one, other = guarantees.pattern(1, 9000), guarantees.pattern(2, 9000)
    assert len(one) == len(other) == 9000
    assert one != other
    assert one[:4096] != one[4096:8192]
