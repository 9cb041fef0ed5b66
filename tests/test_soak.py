"""The soak runs, and would notice: a lost transfer, a changed byte, a wrong owner, a hang."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys

import pytest

import bulktransfer as bulk
from bulktransfer.testing.soak.bank import Bank, Loan
from bulktransfer.testing.soak.brief import Journal, Lane, Slot
from bulktransfer.testing.soak.ends import End
from bulktransfer.testing.soak.letters import HEAD, META_BYTES, Label, Pen, Wrong


def soak(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "bulktransfer.testing.soak", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


@pytest.mark.watchdog(180)
def test_mixed_traffic_with_random_kills_loses_nothing_and_leaves_nothing():
    with soak("--seconds", "5", "--seed", "7", "--patience", "120") as it:
        out, _ = it.communicate(timeout=170)
    assert it.returncode == 0, out
    assert re.search(r"^bytes lost +0$", out, re.MULTILINE)
    found = {name: int(n.replace(",", "")) for name, n in re.findall(r"^(\w+ \w+).*?  ([\d,]+)", out, re.MULTILINE)}
    assert found["transfers done"] > 0
    assert found["processes killed"] > 0


@pytest.mark.watchdog(180)
def test_a_soak_goes_on_where_it_was_stopped_and_ends_in_order_when_told():
    with soak("--seconds", "3600", "--seed", "8", "--patience", "120") as it:
        assert "seed 8" in it.stdout.readline()
        os.killpg(it.pid, signal.SIGSTOP)
        assert os.waitid(os.P_PID, it.pid, os.WSTOPPED).si_status == signal.SIGSTOP
        os.killpg(it.pid, signal.SIGCONT)
        it.send_signal(signal.SIGTERM)
        out, _ = it.communicate(timeout=170)
    assert it.returncode == 0, out
    assert "bytes lost" in out


@pytest.fixture
def pen():
    return Pen(5)


@pytest.fixture
def journal():
    made = Journal()
    yield made
    made.close()


def test_contents_that_differ_in_one_byte_or_are_of_another_key_are_noticed(pen):
    right = pen.write(9, 100)
    pen.judge(right, 9, "here")
    for wrong in (right[:50] + bytes([right[50] ^ 1]) + right[51:], right[:99], right[:3], pen.write(8, 100)):
        with pytest.raises(Wrong, match="here"):
            pen.judge(wrong, 9, "here")
    with pytest.raises(Wrong):
        Pen(6).judge(right, 9, "here")


def test_what_was_published_and_did_not_come_is_lost(journal):
    for sender, slot, count in (
        (True, Slot.SENT, 3),
        (True, Slot.SENT_BYTES, 300),
        (False, Slot.TAKEN, 2),
        (False, Slot.TAKEN_BYTES, 200),
    ):
        journal.add(7, sender, slot, count)
    assert journal.sums(7) == (2, 200, 0, 1, 100)
    assert journal.sums(8) == (0, 0, 0, 0, 0)


def test_a_transfer_out_of_order_is_noticed(pen, journal):
    with bulk.Domain() as here, bulk.Domain() as there:
        lane = Lane(1, "local:soak-order", "FULL", 0, -1, -1)
        end = End(lane, -1, journal, pen, here)
        tx = bulk.bind(lane.address, domain=there, timeout=None, done=lambda outcome: None)
        while tx.state is not bulk.ChannelState.CONNECTED:
            here.serve()
            there.serve()
        alloc = bulk.Allocator(count=2, size=4096, domain=there)
        tx.assign_pool(alloc.pool, timeout=None, done=lambda outcome: None)
        while alloc.pool not in tx.pools:
            list(end.events())
            with contextlib.suppress(bulk.WouldBlock):
                tx.receive_nowait()
        for place in (1, 3):
            buffer = alloc.alloc()
            buffer.put(pen.write(place, HEAD.size))
            tx.move(buffer, Label(1, place, place).pack())
        with pytest.raises(Wrong, match="place 2 of lane 1 was due"):
            list(end.events())
        assert journal.sums(1).taken == 1
        end.close()
        tx.close()
        alloc.close()


def test_a_buffer_that_comes_home_over_a_lane_where_it_was_not_lent_is_noticed(pen):
    with bulk.Domain():
        bank = Bank(pen, random.Random(1))
        buffer, key = bank.take(Lane(3, "shm:", "FULL", -1, 0, -1))
        bank.lend(buffer, Loan("copy", key, {3}))
        with pytest.raises(Wrong, match="over lane 4"):
            bank.came_home(buffer, 4)
        with pytest.raises(Wrong, match="detached"):
            bank.check_home()
        with pytest.raises(Wrong, match="with key"):
            bank.went_round(buffer, Label(3, 1, key + 1), 3)
        buffer.write(b"spoilt")
        with pytest.raises(Wrong, match="lent as copies"):
            bank.came_home(buffer, 3)
        bank.close()


def test_the_meta_size_of_a_lane_is_that_of_a_label():
    assert len(Label(1, 2, 3).pack()) == META_BYTES
    with pytest.raises(Wrong):
        Label.of(b"")
