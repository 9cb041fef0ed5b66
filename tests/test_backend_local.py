"""Promises of the backend `local:`: names of this process, and who meets under them."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import pwd
import select
import socket
import threading

import pytest

from bulktransfer import abc
from bulktransfer.backends.local import BACKEND
from bulktransfer.errors import ForkedError
from bulktransfer.states import Trust
from forking import in_child


def listen(address, backlog=8):
    return BACKEND.listen(address, backlog=backlog, allow_users=())


def connect(address):
    return BACKEND.connect(address, owner=None)


def readable(thing, timeout_s=0.0):
    return bool(select.select([thing], [], [], timeout_s)[0])


def close(*connections):
    for connection in connections:
        os.close(connection.fd)


def test_it_is_a_backend_that_does_not_spin():
    assert isinstance(BACKEND, abc.Backend)
    assert (BACKEND.scheme, BACKEND.spins, tuple(BACKEND.trusts)) == (
        "local",
        False,
        (Trust.FULL, Trust.HALF, Trust.NONE),
    )


def test_both_ends_meet_and_are_this_process():
    rendezvous = listen("local:camera")
    assert isinstance(rendezvous, abc.Rendezvous)
    assert rendezvous.accept() is None
    assert not readable(rendezvous)
    mine = connect("local:camera")
    assert readable(rendezvous)
    theirs = rendezvous.accept()
    assert not readable(rendezvous)
    assert mine.peer == theirs.peer == (os.getpid(), os.geteuid(), os.getegid())
    os.write(mine.fd, b"one")
    os.write(mine.fd, b"two")
    assert (os.read(theirs.fd, 100), os.read(theirs.fd, 100)) == (b"one", b"two")  # SEQPACKET keeps messages apart
    close(mine, theirs)
    rendezvous.close()


def test_the_ends_are_non_blocking_whatever_the_default_timeout_is():
    socket.setdefaulttimeout(30)
    try:
        rendezvous = listen("local:camera")
        ends = [connect("local:camera"), rendezvous.accept()]
    finally:
        socket.setdefaulttimeout(None)
    for end in ends:
        assert not os.get_blocking(end.fd)
        assert fcntl.fcntl(end.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    close(*ends)
    rendezvous.close()


def test_it_stays_readable_until_the_last_one_was_accepted():
    rendezvous = listen("local:camera")
    ends = [connect("local:camera") for _ in range(3)]
    for end in ends[:]:
        assert readable(rendezvous)
        accepted = rendezvous.accept()
        os.write(end.fd, b"x")
        assert os.read(accepted.fd, 10) == b"x"  # first come, first served
        ends.append(accepted)
    assert not readable(rendezvous)
    close(*ends)
    rendezvous.close()


def test_a_free_name_is_chosen():
    one, two = listen("local:"), listen("local:")
    assert one.address != two.address
    mine = connect(one.address)
    assert readable(one)
    assert not readable(two)
    close(mine)
    one.close()
    two.close()


def test_connect_finds_nobody():
    assert connect("local:nobody") is None


def test_a_name_is_taken_once_until_it_is_closed():
    rendezvous = listen("local:camera")
    with pytest.raises(OSError, match="create local:camera: the address is in use") as caught:
        listen("local:camera")
    assert caught.value.errno == errno.EADDRINUSE
    rendezvous.close()
    listen("local:camera").close()


def test_one_of_many_threads_gets_a_name():
    won, barrier = [], threading.Barrier(4)

    def create():
        for number in range(50):
            barrier.wait()
            try:
                won.append((number, listen(f"local:camera{number}")))
            except OSError as error:
                assert error.errno == errno.EADDRINUSE

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in won) == list(range(50))
    for _, rendezvous in won:
        rendezvous.close()


def test_a_dropped_rendezvous_gives_its_name_up():
    listen("local:camera")
    gc.collect()
    listen("local:camera").close()


def test_a_full_backlog_refuses():
    rendezvous = listen("local:camera", backlog=2)
    ends = [connect("local:camera") for _ in range(2)]
    with pytest.raises(BlockingIOError, match="connect local:camera: its backlog of 2 is full"):
        connect("local:camera")
    ends.append(rendezvous.accept())
    ends.append(connect("local:camera"))
    close(*ends)
    rendezvous.close()


def test_close_hangs_up_on_who_waits():
    rendezvous = listen("local:camera")
    mine = connect("local:camera")
    rendezvous.close()
    rendezvous.close()
    assert os.read(mine.fd, 10) == b""
    close(mine)
    assert connect("local:camera") is None
    for call in (rendezvous.fileno, rendezvous.accept):
        with pytest.raises(ValueError, match="on local:camera: it is closed"):
            call()
    assert repr(rendezvous) == "<LocalRendezvous local:camera closed>"


def test_closing_an_old_rendezvous_leaves_a_new_one_alone():
    old = listen("local:camera")
    old.close()
    new = listen("local:camera")
    old.close()
    mine = connect("local:camera")
    assert mine is not None
    close(mine)
    new.close()


def test_appearance_is_readable_once_the_name_is_created():
    watch, other = BACKEND.appearance("local:camera"), BACKEND.appearance("local:other")
    assert not readable(watch)
    rendezvous = listen("local:camera")
    assert readable(watch)
    assert not readable(other)
    watch.clear()
    watch.clear()
    assert not readable(watch)
    rendezvous.close()
    listen("local:camera").close()
    assert readable(watch)
    for one in (watch, other):
        one.close()
        one.close()
    with pytest.raises(ValueError, match="closed"):
        watch.fileno()
    listen("local:camera").close()  # nobody watches any more


def test_no_creation_is_missed():
    """A thread creates while another waits for it, many times over."""
    barrier = threading.Barrier(2)

    def create():
        for number in range(200):
            barrier.wait()
            rendezvous = listen(f"local:camera{number}")
            barrier.wait()
            rendezvous.close()

    thread = threading.Thread(target=create)
    thread.start()
    for number in range(200):
        barrier.wait()
        watch = BACKEND.appearance(f"local:camera{number}")
        while (mine := connect(f"local:camera{number}")) is None:
            assert readable(watch, 30)
            watch.clear()
        close(mine)
        watch.close()
        barrier.wait()
    thread.join()


@pytest.mark.parametrize("name", [".", "..", "a/b", "/a", "a b", "ä", "a" * 65, "a\n", "a\0"])
def test_a_malformed_name_is_refused(name):
    for call in (listen, connect, BACKEND.appearance):
        with pytest.raises(ValueError, match="is not 1 to 64 of"):
            call(f"local:{name}")


def test_malformed_arguments_are_refused():
    for call in (connect, BACKEND.appearance):
        with pytest.raises(ValueError, match="'' is not 1 to 64 of"):
            call("local:")
    for call in (listen, connect, BACKEND.appearance):
        with pytest.raises(ValueError, match="does not start with 'local:'"):
            call("shm:camera")
        with pytest.raises(TypeError, match="an address is a str, not a bytes"):
            call(b"local:camera")
    for backlog in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="create local:camera: backlog is"):
            listen("local:camera", backlog=backlog)
    with pytest.raises(ValueError, match="allow_users"):
        BACKEND.listen("local:camera", backlog=1, allow_users=(1000,))
    for owner in (os.geteuid() + 1, "no such user"):
        with pytest.raises(ValueError, match="owner is"):
            BACKEND.connect("local:camera", owner=owner)


def test_the_owner_may_be_this_user():
    for owner in (os.geteuid(), pwd.getpwuid(os.geteuid()).pw_name):
        assert BACKEND.connect("local:camera", owner=owner) is None


def test_a_forked_child_starts_with_no_names():
    rendezvous = listen("local:camera")
    watch = BACKEND.appearance("local:camera")
    mine = connect("local:camera")

    def look():
        assert connect("local:camera") is None
        for call in (rendezvous.fileno, rendezvous.accept):
            with pytest.raises(ForkedError, match="before a fork"):
                call()
        for thing in (rendezvous, watch):
            thing.close()
        watch.clear()
        own = listen("local:camera")
        end = connect("local:camera")
        assert end.peer.pid == os.getpid()
        close(end)
        own.close()

    in_child(look)
    accepted = rendezvous.accept()
    os.write(mine.fd, b"x")
    assert os.read(accepted.fd, 10) == b"x"
    close(mine, accepted)
    watch.close()
    rendezvous.close()


def test_a_fork_while_another_thread_has_the_lock_does_not_hang_the_child():
    rendezvous = listen("local:camera")
    watch = BACKEND.appearance("local:camera")
    held, done = threading.Event(), threading.Event()

    def hold():
        with rendezvous._table.lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)

    def use():
        watch.close()
        rendezvous.close()
        listen("local:camera").close()

    in_child(use)
    done.set()
    thread.join()
    watch.close()
    rendezvous.close()
