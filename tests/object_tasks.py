"""What the children of tests of pipes and queues do; a module of its own, so that spawn finds it."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1


def run(target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Run a task, and die with the test run when its watchdog ends it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    target(*args)


def echo(conn: Any) -> None:
    """Send everything back until None comes."""
    with conn:
        while (thing := conn.recv()) is not None:
            conn.send(thing)


def send_all(conn: Any, things: list[Any]) -> None:
    with conn:
        for thing in things:
            conn.send(thing)


def hold(conn: Any, here: Any) -> None:
    """Receive one object, say so, and keep it until killed or told."""
    kept = conn.recv()
    here.send(len(kept))
    here.recv()


def tell_sum(held: Any, here: Any) -> None:
    """For a forked child: what it inherited."""
    here.send(int(held.sum()))
    here.recv()


def send_as(user: int, conn: Any, thing: Any) -> None:
    os.setuid(user)
    conn.send(thing)


def put_all(q: Any, things: list[Any]) -> None:
    for thing in things:
        q.put(thing)


def put_range(q: Any, who: int, count: int) -> None:
    for n in range(count):
        q.put((who, n))


def put_and_hang(q: Any, things: list[Any], here: Any) -> None:
    for thing in things:
        q.put(thing)
    here.send("put")
    here.recv()


def get_until_none(q: Any, results: Any) -> None:
    """Hand on what comes, until None does."""
    while True:
        thing = q.get()
        if thing is None:
            results.send(None)
            return
        results.send(thing)


def get_and_hang(q: Any, here: Any) -> None:
    thing = q.get()
    here.send(thing)
    here.recv()


def get_for_ever(q: Any) -> None:
    while True:
        q.get()


def put_for_ever(q: Any, thing: Any) -> None:
    while True:
        q.put(thing)


def do_tasks(q: Any) -> None:
    while q.get() is not None:
        q.task_done()
    q.task_done()


def put_and_cancel(q: Any, count: int) -> None:
    """Put more than the socket holds, and end."""
    for n in range(count):
        q.put(n)
    q.cancel_join_thread()


def task_done(q: Any, count: int) -> None:
    for _ in range(count):
        q.task_done()


def echo_queue(there: Any, back: Any) -> None:
    while (thing := there.get()) is not None:
        back.put(thing)
