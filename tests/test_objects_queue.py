"""Queues of objects: multiprocessing's methods and semantics, in one process and in several."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import resource
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest

import bulktransfer as bulk
import object_tasks
from forking import SOMEBODY_ELSE, fork, needs_root
from object_children import child

MIB = 1 << 20
METHODS = ["fork", "spawn", "forkserver"]

bulk.current_domain()  # it keeps two descriptors, and is no test's


def finish(q: Any) -> None:
    """End a queue in this process, what was put sent."""
    q.close()
    q.join_thread()


@pytest.fixture(params=[bulk.Queue, bulk.JoinableQueue], ids=["Queue", "JoinableQueue"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_objects_come_out_in_the_order_in_which_they_went_in(kind: Any) -> None:
    q = kind()
    things = [1, "two", np.arange(MIB), b"x" * 100_000, None]
    for thing in things:
        q.put(thing)
    for thing in things:
        assert np.array_equal(q.get(), thing)
    assert q.empty()
    with pytest.raises(queue.Empty):
        q.get_nowait()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.01)
    finish(q)


def test_qsize_is_exact_at_every_instant(kind: Any) -> None:
    q = kind()
    for n in range(600):  # more than the socket holds
        q.put(n)
        assert q.qsize() == n + 1
    for n in range(600):
        assert q.get() == n
        assert q.qsize() == 599 - n
    finish(q)


def test_a_full_queue_refuses_and_then_takes_again(kind: Any) -> None:
    q = kind(3)
    for n in range(3):
        q.put_nowait(n)
    assert q.full()
    with pytest.raises(queue.Full):
        q.put_nowait(3)
    with pytest.raises(queue.Full):
        q.put(3, timeout=0.01)
    assert q.get() == 0
    assert not q.full()
    q.put(3)
    assert [q.get() for _ in range(3)] == [1, 2, 3]
    finish(q)


def test_a_waiting_put_goes_on_when_there_is_room(kind: Any) -> None:
    q = kind(1)
    q.put("first")
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (q.put("second"), done.set()))
    waiting.start()
    assert not done.wait(0.05)
    assert q.get() == "first"
    assert done.wait(30)
    waiting.join()
    assert q.get() == "second"
    finish(q)


def test_a_closed_queue_says_so(kind: Any) -> None:
    q = kind()
    q.put(1)
    finish(q)
    with pytest.raises(ValueError, match="is closed"):
        q.put(2)
    with pytest.raises(ValueError, match="is closed"):
        q.get()


def test_a_queue_pickles_only_while_a_process_starts(kind: Any) -> None:
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(kind())
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(bulk.SimpleQueue())


def test_what_cannot_be_pickled_is_reported_and_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    q = bulk.Queue(1)
    q.put(threading.Lock())
    q.put("next")  # waits until the lock no longer counts
    assert q.get() == "next"
    finish(q)
    assert "cannot pickle '_thread.lock' object" in capsys.readouterr().err


def test_with_errors_asked_for_the_caller_gets_them() -> None:
    q = bulk.Queue(1, limit=2 * MIB, when_full="error")
    with pytest.raises(TypeError):
        q.put(threading.Lock())
    q.put(np.zeros(2 * MIB, np.uint8))
    held = q.get()
    with pytest.raises(bulk.PoolExhaustedError, match="lent to receivers"):
        q.put(np.zeros(2 * MIB, np.uint8))
    assert q.qsize() == 0
    del held
    q.put(np.ones(2 * MIB, np.uint8))
    assert q.get().sum() == 2 * MIB
    finish(q)


def test_at_the_limit_the_feeder_waits_for_the_last_view() -> None:
    q = bulk.Queue(limit=2 * MIB)
    for n in range(3):
        q.put(np.full(2 * MIB, n, np.uint8))
    for n in range(3):
        held = q.get()
        assert held[-1] == n
        with pytest.raises(queue.Empty):
            q.get(timeout=0.02)
        del held
    finish(q)


@pytest.mark.parametrize("method", METHODS)
def test_many_producers_and_consumers_share_a_queue(kind: Any, method: str) -> None:
    q = kind(50)
    here, there = multiprocessing.Pipe(False)
    count = 300
    with here, there:
        producers = [child(method, object_tasks.put_range, q, who, count) for who in range(3)]
        with producers[0], producers[1], producers[2]:
            results, ends = zip(*(multiprocessing.Pipe(False) for _ in range(2)), strict=True)
            with (
                child(method, object_tasks.get_until_none, q, ends[0]),
                child(method, object_tasks.get_until_none, q, ends[1]),
            ):
                found: Counter[tuple[int, int]] = Counter()
                by_consumer: list[list[tuple[int, int]]] = [[], []]
                while sum(found.values()) < 3 * count:
                    for ready in multiprocessing.connection.wait(results):
                        thing = ready.recv()
                        by_consumer[results.index(ready)].append(thing)
                        found[thing] += 1
                q.put(None)
                q.put(None)
                assert [r.recv() for r in results] == [None, None]
            for end in (*results, *ends):
                end.close()
    assert found == Counter((who, n) for who in range(3) for n in range(count))
    for got in by_consumer:  # what one consumer gets of one producer is in order
        for who in range(3):
            assert [n for w, n in got if w == who] == sorted(n for w, n in got if w == who)
    assert q.qsize() == 0
    finish(q)


@pytest.mark.parametrize("method", METHODS)
def test_a_child_sends_what_it_put_before_it_ends(method: str) -> None:
    q = bulk.Queue()
    things = [*range(2000), np.arange(MIB)]
    with child(method, object_tasks.put_all, q, things) as other:
        for thing in things:
            assert np.array_equal(q.get(), thing)
        other.join()
        assert other.exitcode == 0
    finish(q)


def test_an_interpreter_sends_what_it_put_before_it_ends(spawn: Any) -> None:
    def put(pipe, reader, writer):
        import multiprocessing.reduction  # noqa: F401
        import os

        import bulktransfer as bulk

        q = bulk.Queue()
        q._writer.close()
        q._writer = bulk.objects.connection.Connection(os.dup(writer), False, True, q._terms)
        for n in range(1000):
            q.put(n)
        q.put(bytes(300_000))
        pipe.send("put")

    r, w = bulk.Pipe(False)
    with r, w:
        other = spawn(put, r.fileno(), w.fileno(), pass_fds=(w.fileno(),))
        assert other.receive() == "put"
        assert [r.recv() for _ in range(1000)] == list(range(1000))
        assert r.recv() == bytes(300_000)
        other.join()


def test_a_child_that_is_not_to_wait_ends_though_nobody_gets() -> None:
    q = bulk.Queue()

    with child("fork", object_tasks.put_and_cancel, q, 5000) as other:
        other.join(30)
        assert other.exitcode == 0
    finish(q)


def test_a_forked_child_does_not_send_its_parents_objects_again() -> None:
    q = bulk.Queue()
    for n in range(1000):  # many still wait for the feeder
        q.put(n)
    with child("fork", object_tasks.put_all, q, ["child"]) as other:
        found = [q.get() for _ in range(1001)]
        other.join()
    assert [thing for thing in found if thing != "child"] == list(range(1000))
    assert q.qsize() == 0
    finish(q)


@pytest.mark.parametrize("method", METHODS)
def test_join_waits_for_every_task(method: str) -> None:
    q = bulk.JoinableQueue()
    with child(method, object_tasks.do_tasks, q) as one, child(method, object_tasks.do_tasks, q) as two:
        for n in range(100):
            q.put(n)
        q.put(np.zeros(MIB))
        q.join()
        assert q.qsize() == 0
        q.put(None)
        q.put(None)
        q.join()
        one.join()
        two.join()
        assert (one.exitcode, two.exitcode) == (0, 0)
    with pytest.raises(ValueError, match="called too many times"):
        q.task_done()
    finish(q)


def test_a_task_may_be_done_by_another_process_and_before_anybody_got_it() -> None:
    q = bulk.JoinableQueue()
    for n in range(3):
        q.put(n)
    q.task_done()
    q.get()  # counts as the one that is done
    q.get()
    with child("fork", object_tasks.task_done, q, 1) as other:
        other.join()
        assert other.exitcode == 0
    assert q._ledger.unfinished(q._reader.fileno()) == 1
    q.get()
    q.task_done()
    q.join()
    finish(q)


@pytest.mark.parametrize("method", METHODS)
def test_a_simple_queue_carries_objects_both_ways(method: str) -> None:
    there, back = bulk.SimpleQueue(), bulk.SimpleQueue()
    with child(method, object_tasks.echo_queue, there, back) as other:
        for thing in (1, np.arange(MIB), "end"):
            there.put(thing)
            assert np.array_equal(back.get(), thing)
        there.put(None)
        other.join()
        assert other.exitcode == 0
    assert back.empty()
    for q in (there, back):
        q.close()
        with pytest.raises(OSError, match="handle is closed"):
            q.empty()
    assert str(bulk.SimpleQueue[int]).endswith("SimpleQueue[int]")


def test_a_queue_that_is_dropped_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    q = bulk.Queue()
    q.put(np.zeros(MIB))
    thread = q._feeder.thread
    q.get()
    del q
    thread.join()
    assert len(os.listdir("/proc/self/fd")) == before


def put_more_than_the_kernel_carries(pipe: Any) -> list[int]:
    """As a user whose processes may have few descriptors on their way."""
    bulk.current_domain()
    q = bulk.Queue()
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
    os.setuid(SOMEBODY_ELSE)
    for n in range(120):
        q.put(np.full(1 << 14, n, np.uint8))
    pipe.send("put")
    pipe.recv()
    got = [int(q.get(timeout=30)[-1]) for _ in range(120)]
    finish(q)
    return got


@needs_root
def test_with_many_leases_on_their_way_the_feeder_waits() -> None:
    child = fork(put_more_than_the_kernel_carries)
    assert child.receive() == "put"
    child.pipe.send("get")
    assert child.result() == list(range(120))
