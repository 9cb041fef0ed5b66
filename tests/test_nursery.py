"""Processes of tests come from one that has everything imported; each is a process like any other."""

from __future__ import annotations

import os
import select
import signal

import pytest

from bulktransfer.testing import Subject, nursery
from bulktransfer.testing.places import Gone, There

nursery.ready()  # while tests are collected, so that no test seems to have left it behind

SHM = Subject("shm:")


def is_gone(pidfd: int) -> bool:
    """Whether that process has ended; waits for it."""
    looking = select.poll()
    looking.register(pidfd, select.POLLIN)
    return bool(looking.poll(20_000))


def test_each_place_is_a_process_of_its_own_and_ends_with_it() -> None:
    with There(SHM) as one, There(SHM) as other:
        pids = {os.getpid(), one.party().call("pid"), other.party().call("pid")}
        assert len(pids) == 3
        assert one.process.pid in pids
        pidfd = os.pidfd_open(one.process.pid)
    assert is_gone(pidfd)
    os.close(pidfd)
    assert one.process.wait(0) == 0


def test_a_death_is_told_with_its_signal() -> None:
    with There(SHM) as there:
        party = there.party()
        there.kill()
        with pytest.raises(Gone, match="SIGKILL") as gone:
            party.call("pid")
    assert (gone.value.signal, gone.value.code) == (signal.SIGKILL, 0)


def test_what_runs_on_one_core_here_runs_there_too() -> None:
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        with There(SHM) as there:
            assert os.sched_getaffinity(there.process.pid) == {min(cores)}
    finally:
        os.sched_setaffinity(0, cores)


def test_it_sees_the_environment_of_now(rendezvous_dir) -> None:
    with There(Subject("shm:")) as there:
        party = there.party()
        assert party.call("create", 0, True, "FULL", "MASTER").startswith("shm:")
        assert any(rendezvous_dir.iterdir())


def test_another_directory_has_another_nursery(tmp_path, monkeypatch) -> None:
    here = nursery.ready()
    assert nursery.ready() is here
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    elsewhere = nursery.Nursery()
    assert elsewhere.place != here.place
    elsewhere.close()


def test_processes_end_with_the_one_that_asked(spawn) -> None:
    child = spawn(
        """
        from bulktransfer.testing import Subject
        from bulktransfer.testing.places import There
        there = There(Subject("shm:"))
        pipe.send(there.process.pid)
        pipe.recv()
        """
    )
    pidfd = os.pidfd_open(child.receive())
    child.kill()
    assert is_gone(pidfd)
    os.close(pidfd)
