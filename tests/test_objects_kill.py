"""A killed producer or consumer loses what it alone had, and nothing else; counts stay right, nobody waits for it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from typing import Any

import numpy as np
import pytest

import bulktransfer as bulk
import object_tasks
from object_children import child
from stepping import killed_at, needs_ptrace

BIG = 1 << 16

bulk.current_domain()  # it keeps two descriptors, and is no test's


def finish(q: Any) -> None:
    q.close()
    q.join_thread()


def drained(q: Any) -> list[int]:
    """What is there now, as numbers; views of arrays die."""
    found = []
    while q.qsize():
        found.append(int(np.max(q.get(timeout=30))))
        if isinstance(q, bulk.JoinableQueue):
            q.task_done()
    return found


def check_all_is_well(q: Any) -> None:
    """Nothing is there, exactly two objects find room, every task can be done, no memory is away."""
    assert q.qsize() == 0
    assert q.empty()
    q.put_nowait(1)
    q.put_nowait(np.full(BIG, 2, np.uint8))
    with pytest.raises(queue.Full):
        q.put_nowait(3)
    assert drained(q) == [1, 2]
    if isinstance(q, bulk.JoinableQueue):
        q.join()
    check_memory_is_back(q)


def check_memory_is_back(q: Any) -> None:
    """Waits at most for the feeder, which closes its own lease after the message is out."""
    pools = q._sender.store
    while pools.out:
        pools.await_return()


def steps() -> Any:
    """1, 2, 3 ... and, where the whole would take too long, with growing gaps at the end."""
    step = 1
    while True:
        yield step
        step += 1 + step // 150


@needs_ptrace
@pytest.mark.watchdog(240)
@pytest.mark.parametrize("big", [False, True], ids=["small", "big"])
@pytest.mark.parametrize("kind", [bulk.Queue, bulk.JoinableQueue], ids=["Queue", "JoinableQueue"])
def test_a_consumer_killed_at_any_step_of_get_takes_at_most_what_it_got(kind: Any, big: bool) -> None:
    q = kind(2)
    check_all_is_well(q)
    outcomes = set()
    for step in steps():
        for number in (1, 2):
            q.put(np.full(BIG, number, np.uint8) if big else number)
        was_killed = killed_at(step, q.get)
        found = drained(q)
        assert found in ([1, 2], [2])
        outcomes.add(tuple(found))
        check_all_is_well(q)
        if not was_killed:
            break
    assert outcomes == {(1, 2), (2,)}
    finish(q)


def put_one(q: Any, thing: Any) -> None:
    q.put(thing)
    finish(q)


@needs_ptrace
@pytest.mark.watchdog(240)
@pytest.mark.parametrize("big", [False, True], ids=["small", "big"])
@pytest.mark.parametrize("kind", [bulk.Queue, bulk.JoinableQueue], ids=["Queue", "JoinableQueue"])
def test_a_producer_killed_at_any_step_of_put_leaves_all_or_nothing(kind: Any, big: bool) -> None:
    q = kind(2)
    check_all_is_well(q)
    outcomes = set()
    for step in steps():
        q.put(1)
        was_killed = killed_at(step, lambda: put_one(q, np.full(BIG, 2, np.uint8) if big else 2))
        found = sorted(drained(q))  # of two producers either may be first
        assert found in ([1], [1, 2])
        outcomes.add(tuple(found))
        check_all_is_well(q)
        if not was_killed:
            break
    assert outcomes == {(1,), (1, 2)}
    finish(q)


def test_a_killed_consumer_holds_up_nobody() -> None:
    q = bulk.Queue(5)
    stop = threading.Event()

    def feed() -> None:
        n = 0
        while not stop.is_set():
            try:
                q.put((n, np.full(BIG, n % 256, np.uint8) if n % 3 == 0 else n % 256), timeout=0.05)
            except queue.Full:
                continue
            n += 1

    producer = threading.Thread(target=feed)
    producer.start()
    last = -1
    for _ in range(25):
        with child("fork", object_tasks.get_for_ever, q) as victim:
            while victim.is_alive() and q.get(timeout=30)[0] < last + 30:
                continue
            victim.kill()
            n, value = q.get(timeout=30)
            assert n > last
            assert int(np.max(value)) == n % 256
            last = n
            del value
    stop.set()
    producer.join()
    while q.qsize():
        q.get()
    check_memory_is_back(q)
    finish(q)


@pytest.mark.parametrize("big", [False, True], ids=["small", "big"])
def test_a_killed_producer_holds_up_nobody(big: bool) -> None:
    q = bulk.Queue(4)
    thing = np.ones(BIG, np.uint8) if big else 1
    for _ in range(25):
        with child("fork", object_tasks.put_for_ever, q, thing) as victim:
            for _ in range(20):
                assert np.max(q.get(timeout=30)) == 1
            victim.kill()
            victim.join()
        while not q.empty():
            assert np.max(q.get()) == 1
        assert q.qsize() == 0
        for _ in range(4):
            q.put_nowait("own")
        assert [q.get() for _ in range(4)] == ["own"] * 4
    finish(q)


def test_join_does_not_wait_for_a_task_of_a_killed_process() -> None:
    q = bulk.JoinableQueue()
    here, there = multiprocessing.Pipe()
    with here, there, child("spawn", object_tasks.get_and_hang, q, there) as victim:
        q.put("task")
        assert here.recv() == "task"
        joined = threading.Event()
        joiner = threading.Thread(target=lambda: (q.join(), joined.set()))
        joiner.start()
        assert not joined.wait(0.1)
        victim.kill()
        victim.join()
        assert joined.wait(30)
        joiner.join()
    finish(q)


def test_what_a_killed_producer_had_not_sent_does_not_count() -> None:
    q = bulk.Queue(1000)
    here, there = multiprocessing.Pipe()
    with here, there, child("fork", object_tasks.put_and_hang, q, list(range(900)), there) as victim:
        assert here.recv() == "put"  # more than the socket holds: the rest waits in the victim
        assert q.qsize() == 900
        victim.kill()
        victim.join()
        left = q.qsize()
        assert 0 < left < 900
        assert [q.get() for _ in range(left)] == list(range(left))
        assert q.empty()
    finish(q)


def test_a_stopped_process_that_waits_for_objects_holds_up_nobody() -> None:
    q = bulk.Queue()
    with child("fork", object_tasks.get_for_ever, q) as sleeper:
        q.put("taken")
        while q.qsize():
            multiprocessing.connection.wait([sleeper.sentinel], 0.01)
        os.kill(sleeper.pid, signal.SIGSTOP)  # most likely in recvmsg
        q.put("one")
        q.put("two")
        assert {q.get(timeout=30), q.get(timeout=30)} == {"one", "two"}
    finish(q)
