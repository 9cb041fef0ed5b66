"""A side that is killed at a step, or whose system calls fail, harms nobody; every n-th step here, all by command.

python -m bulktransfer.testing.faults kill
python -m bulktransfer.testing.faults fail
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal

import pytest

import worlds  # noqa: F401 - it starts the helper thread before descriptors are counted
from bulktransfer.testing.faults import fails, kills
from bulktransfer.testing.faults.kills import SCENES
from bulktransfer.testing.faults.tracing import KILL, WATCHED, Board, Child, may_trace

pytestmark = pytest.mark.skipif(not may_trace(), reason="no ptrace here, or no x86-64")

MEMFD_CREATE = 319
scenes = pytest.mark.parametrize("number", range(len(SCENES)), ids=[s.name.replace(" ", "-") for s in SCENES])


@scenes
@pytest.mark.watchdog(120)
def test_a_side_that_is_killed_at_a_step_harms_nobody(number, rendezvous_dir):
    kills.warm_up(SCENES[number], str(rendezvous_dir))
    deaths = list(kills.kill_all(SCENES[number], str(rendezvous_dir), every=83, start=7 + 6 * number))
    assert [death for death in deaths if death.wrong] == []
    assert len(deaths) > 2
    assert deaths[-1].outcome == "unharmed"


@scenes
@pytest.mark.watchdog(120)
@pytest.mark.skipif(
    not os.environ.get("BULK_TEST_FAULTS"),
    reason="BULK_TEST_FAULTS=1 runs it: about one attempt in a thousand does not end, and nobody knows yet why",
)
def test_a_call_that_fails_is_a_typed_error_and_a_retry_works(number, rendezvous_dir):
    kills.warm_up(SCENES[number], str(rendezvous_dir))
    faults = list(fails.fail_all(SCENES[number], str(rendezvous_dir), every=29, start=2 + 2 * number))
    assert [fault for fault in faults if fault.wrong] == []
    assert len(faults) > 1


class Chosen(fails.Attempt):
    """The first call of a kind within an act fails, and goes on failing so many times."""

    def __init__(self, scene, act, call, error, directory, times=1):
        super().__init__(scene, 0, 0, directory)
        self.chosen = (act, call, error)
        self.times = times

    def _decide(self, step):
        act, call, error = self.chosen
        if step.kind != "enter" or kills.ACTS[step.phase] != act or fails.CALLS.get(step.call, ("",))[0] != call:
            return None
        self.times -= 1
        self.hit = (act, call, errno.errorcode[error])
        return error if self.times >= 0 else None


@pytest.mark.parametrize(
    "error", [errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN], ids=lambda number: errno.errorcode[number]
)
@pytest.mark.parametrize(
    ("number", "act"), [(1, "remove"), (1, "assign"), (0, "assign"), (0, "remove"), (0, "destroy")]
)
def test_a_control_message_that_the_kernel_has_no_room_for_waits_and_arrives(number, act, error, rendezvous_dir):
    fault = Chosen(SCENES[number], act, "sendmsg", error, str(rendezvous_dir), times=3).run()
    assert fault.call == "sendmsg"
    assert fault.wrong == ()
    assert (fault.seen, fault.other) == ("nothing", "nothing")


@pytest.fixture
def board():
    made = Board()
    yield made
    made.close()


def test_the_tracer_kills_at_the_step_that_was_chosen_and_counts_to_the_end(board):
    def act():
        for _ in range(3):
            os.getppid()
        board.say("end")

    whole = Child(act, board)
    assert whole.run(lambda step: None) == 0
    assert board.said == "end"
    seen = []

    def decide(step):
        seen.append(step)
        return KILL if step.number == whole.steps - 1 else None

    assert Child(act, board).run(decide) == -signal.SIGKILL
    assert [step.number for step in seen] == list(range(1, whole.steps))


def test_the_tracer_stops_after_each_store_to_a_published_word(board):
    def act():
        memory = mmap.mmap(-1, 4096)
        cell = ctypes.c_uint64.from_buffer(memory, WATCHED[0])
        board.watch(ctypes.addressof(cell) - WATCHED[0])
        os.getppid()  # the registers are set where it stops
        for number in range(5):
            cell.value = number

    kinds = []
    assert Child(act, board).run(lambda step: kinds.append(step.kind)) == 0
    assert kinds.count("store") == 5


def test_the_tracer_lets_a_call_fail_without_doing_it(board):
    def act():
        before = os.listdir("/proc/self/fd")
        try:
            os.memfd_create("never")
        except OSError as error:
            board.say(errno.errorcode[error.errno])
        assert os.listdir("/proc/self/fd") == before
        os.close(os.memfd_create("again"))

    hit = []

    def decide(step):
        if step.kind == "enter" and step.call == MEMFD_CREATE and not hit:
            hit.append(step)
            return errno.EMFILE
        return None

    assert Child(act, board).run(decide) == 0
    assert board.said == "EMFILE"
    assert hit


def test_a_side_that_answers_a_fault_with_something_untyped_is_noticed(rendezvous_dir, monkeypatch):
    def broken(cast, is_source, board):
        board.mark(0)
        os.memfd_create("x")

    monkeypatch.setattr(fails, "faulty", broken)
    monkeypatch.setattr(fails, "play", lambda *arguments: [])
    fault = fails.Attempt(SCENES[0], 1, 0, str(rendezvous_dir)).run()
    assert fault.call == "memfd_create"
    assert fault.wrong == ("the side with the fault ended with 1",)


def test_what_a_run_leaves_behind_is_noticed():
    before = kills.held()
    number = os.memfd_create("left")
    try:
        assert "left" in kills.left(before, 1)[0]
    finally:
        os.close(number)
    assert kills.left(before) == []
