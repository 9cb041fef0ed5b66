"""Promises of the backend `shm:`: who meets whom, who is kept out, how it ends, and how its coming is seen."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import pwd
import resource
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from bulktransfer import abc
from bulktransfer.backends import _shm_door, shm
from bulktransfer.backends.shm import BACKEND
from bulktransfer.errors import ForkedError
from bulktransfer.states import Trust
from forking import SOMEBODY_ELSE, fork, in_child, needs_root
from shm_tools import ME, close, connect, listen, mode_of, reaches, readable


@pytest.fixture
def names(rendezvous_dir):
    """The directory of this test's names, which does not exist yet."""
    with pytest.MonkeyPatch.context() as patch:
        path = rendezvous_dir / "names"
        patch.setenv("BULKTRANSFER_DIR", str(path))
        yield path


@pytest.fixture
def shared():
    """A directory that other users can enter and write, as /tmp."""
    path = Path(tempfile.mkdtemp(prefix="bulk-shared-", dir=os.environ.get("BULK_TEST_TMP", "/tmp")))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


# -- meeting ---------------------------------------------------------------------------------------------------------


def test_it_is_a_backend_of_full_trust():
    assert isinstance(BACKEND, abc.Backend)
    assert (BACKEND.scheme, BACKEND.spins, tuple(BACKEND.trusts)) == ("shm", True, (Trust.FULL, Trust.HALF, Trust.NONE))


def test_two_processes_meet_and_know_each_other(names):
    rendezvous = listen("shm:camera")
    assert isinstance(rendezvous, abc.Rendezvous)
    assert rendezvous.address == "shm:camera"
    assert rendezvous.accept() is None
    assert not readable(rendezvous)

    def knock(pipe):
        end = connect("shm:camera")
        os.write(end.fd, b"one")
        os.write(end.fd, b"two")
        pipe.recv()
        return end.peer

    child = fork(knock)
    assert readable(rendezvous, 30)
    end = rendezvous.accept()
    assert end.peer == (child.pid, ME, os.getegid())
    readable(end.fd, 30)
    assert os.read(end.fd, 10) == b"one"  # SEQPACKET keeps messages apart
    child.pipe.send("done")
    assert child.result() == (os.getpid(), ME, os.getegid())
    assert os.read(end.fd, 10) == b"two"
    close(end)
    rendezvous.close()


@pytest.mark.parametrize("default", [None, 30])
def test_the_ends_are_non_blocking_and_close_on_exec(names, default):
    socket.setdefaulttimeout(default)
    try:
        rendezvous = listen("shm:camera")
        assert rendezvous.accept() is None
        ends = [connect("shm:camera"), rendezvous.accept()]
    finally:
        socket.setdefaulttimeout(None)
    for fd in (rendezvous.fileno(), *(end.fd for end in ends)):
        assert not os.get_blocking(fd)
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    close(*ends)
    rendezvous.close()


def test_a_free_name_is_chosen(names):
    one, two = listen("shm:"), listen("shm:")
    assert one.address != two.address
    assert reaches(one.address, one)
    assert not reaches(one.address, two)
    close(one.accept())
    one.close()
    two.close()
    assert os.listdir(names) == []


def test_connect_finds_nobody_and_leaves_nothing(names):
    assert connect("shm:nobody") is None
    assert not names.exists()
    listen("shm:other").close()
    assert connect("shm:nobody") is None
    assert connect(f"shm:{names}/nobody") is None
    assert connect(f"shm:{names}/no/body") is None


def test_a_full_backlog_refuses_at_once(names):
    rendezvous = listen("shm:camera", backlog=1)
    ends = [connect("shm:camera") for _ in range(2)]  # Linux queues one more than it is told
    with pytest.raises(BlockingIOError, match="connect shm:camera: its backlog is full"):
        connect("shm:camera")
    close(*ends)
    rendezvous.close()


def test_a_path_may_be_long_and_relative_to_nothing(shared):
    directory = shared
    for _ in range(15):
        directory = directory / ("d" * 200)
    directory.mkdir(parents=True)
    address = f"shm:{directory}/{'n' * 85}"
    rendezvous = listen(address)
    assert reaches(address, rendezvous)
    with pytest.raises(OSError, match="in use"):
        listen(address)
    rendezvous.close()
    assert os.listdir(directory) == []


def test_a_long_directory_of_names_serves(shared, monkeypatch):
    (shared / ("d" * 200)).mkdir()
    monkeypatch.setenv("BULKTRANSFER_DIR", str(shared / ("d" * 200) / ("e" * 200)))
    rendezvous = listen("shm:" + "n" * 64)
    assert reaches("shm:" + "n" * 64, rendezvous)
    rendezvous.close()


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".", "..", "a/b", "./a", "a b", "ä", "a" * 65, "a\n", "a\0"])
def test_a_malformed_name_is_refused(names, name):
    for call in (listen, connect, BACKEND.appearance):
        with pytest.raises(ValueError, match=r"is neither 1 to 64 of A-Z a-z 0-9 \. _ - nor an absolute path"):
            call(f"shm:{name}")
    assert not names.exists()


@pytest.mark.parametrize("path", ["/", "/tmp/", "/tmp/.", "/tmp/..", "/tmp/a\0b", "/t\0p/a"])
def test_a_malformed_path_is_refused(path):
    for call in (listen, connect, BACKEND.appearance):
        with pytest.raises(ValueError, match="does not end in the name of a socket"):
            call(f"shm:{path}")


def test_a_path_that_the_system_cannot_take_is_refused():
    with pytest.raises(ValueError, match="the last part of the path is longer than 85 bytes"):
        listen("shm:/tmp/" + "ä" * 43)
    for call in (listen, connect, BACKEND.appearance):
        with pytest.raises(ValueError, match="the path is too long for the system"):
            call("shm:" + "/directory" * 500)
        with pytest.raises(ValueError, match="the path is too long for the system"):
            call(f"shm:/{'d' * 300}/a")


def test_an_address_is_a_str_of_this_scheme():
    for call in (listen, connect, BACKEND.appearance):
        with pytest.raises(TypeError, match="an address is a str, not a bytes"):
            call(b"shm:camera")
        with pytest.raises(ValueError, match="does not start with 'shm:'"):
            call("local:camera")
    for call in (connect, BACKEND.appearance):
        with pytest.raises(ValueError, match="'' is neither"):
            call("shm:")


@pytest.mark.parametrize("backlog", [0, -1, 1.5, True, None])
def test_a_malformed_backlog_is_refused(names, backlog):
    with pytest.raises(ValueError, match="create shm:camera: backlog is"):
        listen("shm:camera", backlog=backlog)


def test_malformed_users_are_refused(shared):
    address = f"shm:{shared}/camera"
    for user in (-1, 2**32 - 1, "no such user"):
        with pytest.raises(ValueError, match="user"):
            listen(address, allow_users=[user])
        with pytest.raises(ValueError, match="user"):
            connect(address, owner=user)
    for user in (1.0, True, b"root"):
        with pytest.raises(TypeError, match="a user is an int or a str"):
            listen(address, allow_users=[user])
        with pytest.raises(TypeError, match="a user is an int or a str"):
            connect(address, owner=user)
    for users in ("root", 0):
        with pytest.raises(TypeError, match="allow_users is a sequence of users, not a single one"):
            listen(address, allow_users=users)
    assert os.listdir(shared) == []


def test_other_users_need_a_path(names):
    with pytest.raises(ValueError, match="create shm:camera: allow_users needs an address with a path"):
        listen("shm:camera", allow_users=[ME])
    with pytest.raises(ValueError, match="connect shm:camera: owner is another user, which needs an address with a"):
        connect("shm:camera", owner=ME + 1)
    assert connect("shm:camera", owner=ME) is None
    assert connect("shm:camera", owner=pwd.getpwuid(ME).pw_name) is None


# -- people ----------------------------------------------------------------------------------------------------------


@needs_root
def test_an_admitted_user_gets_through_and_others_are_hung_up_on(shared):
    address = f"shm:{shared}/camera"
    nobody = pwd.getpwuid(SOMEBODY_ELSE).pw_name
    rendezvous = listen(address, allow_users=[nobody])

    def knock(pipe):
        end = connect(address, owner=ME)
        pipe.send(end.peer)
        pipe.recv()
        return os.read(end.fd, 10)

    stranger = fork(knock, uid=SOMEBODY_ELSE - 1)
    assert stranger.receive() == (os.getpid(), ME, os.getegid())
    assert rendezvous.accept() is None
    stranger.pipe.send("read")
    assert stranger.result() == b""
    friend = fork(knock, uid=SOMEBODY_ELSE)
    friend.receive()
    end = rendezvous.accept()
    assert end.peer == (friend.pid, SOMEBODY_ELSE, SOMEBODY_ELSE)
    os.write(end.fd, b"welcome")
    friend.pipe.send("read")
    assert friend.result() == b"welcome"
    close(end)
    rendezvous.close()


@needs_root
def test_accept_hangs_up_on_a_bounded_number_of_strangers(shared):
    address = f"shm:{shared}/camera"
    rendezvous = listen(address, backlog=64, allow_users=[SOMEBODY_ELSE])

    def knock(pipe):
        ends = [connect(address, owner=ME) for _ in range(_shm_door.STRANGERS_PER_CALL + 1)]
        pipe.send(len(ends))
        pipe.recv()

    strangers = fork(knock, uid=SOMEBODY_ELSE - 1)
    strangers.receive()
    mine = connect(address)
    assert rendezvous.accept() is None
    assert readable(rendezvous)
    theirs = rendezvous.accept()
    assert theirs.peer.uid == ME
    strangers.pipe.send("end")
    strangers.result()
    close(mine, theirs)
    rendezvous.close()


def test_a_peer_of_a_user_that_is_not_admitted_is_hung_up_on(names, monkeypatch):
    rendezvous = listen("shm:camera")
    monkeypatch.setattr(_shm_door, "_peer_of", lambda sock: abc.Peer(1, ME, 1))
    mine = connect("shm:camera")
    monkeypatch.setattr(_shm_door, "_peer_of", lambda sock: abc.Peer(1, ME + 1, 1))
    assert rendezvous.accept() is None
    assert os.read(mine.fd, 10) == b""
    close(mine)
    with pytest.raises(PermissionError, match=f"process 1 of user {ME + 1} answers there, not one of user {ME}"):
        connect("shm:camera")
    rendezvous.close()


@needs_root
def test_a_node_of_this_user_alone_keeps_others_out(shared):
    address = f"shm:{shared}/camera"
    rendezvous = listen(address)
    with pytest.raises(PermissionError, match=f"connect {address}: it belongs to user 0, not to user 65534"):
        in_child(lambda: connect(address), uid=SOMEBODY_ELSE)
    with pytest.raises(PermissionError, match=f"connect {address}: Permission denied"):
        in_child(lambda: connect(address, owner=0), uid=SOMEBODY_ELSE)
    assert rendezvous.accept() is None
    rendezvous.close()


@needs_root
def test_root_does_not_talk_to_anybody_without_being_told(shared):
    address = f"shm:{shared}/camera"

    def create(pipe):
        rendezvous = listen(address, allow_users=[0])
        pipe.send("created")
        pipe.recv()
        return rendezvous.accept() is None

    child = fork(create, uid=SOMEBODY_ELSE)
    child.receive()
    with pytest.raises(PermissionError, match="it belongs to user 65534, not to user 0"):
        connect(address)
    with pytest.raises(PermissionError, match="it belongs to user 65534, not to user 65533"):
        connect(address, owner=SOMEBODY_ELSE - 1)
    os.chown(shared / "camera", 0, 0)  # the node says one thing, the process behind it another
    with pytest.raises(PermissionError, match="of user 65534 answers there, not one of user 0"):
        connect(address)
    os.chown(shared / "camera", SOMEBODY_ELSE, SOMEBODY_ELSE)
    end = connect(address, owner=SOMEBODY_ELSE)
    assert end.peer.uid == SOMEBODY_ELSE
    child.pipe.send("accept")
    child.result()
    close(end)


@needs_root
def test_root_does_not_take_the_place_of_another_user(shared):
    def create(pipe):
        rendezvous = listen(f"shm:{shared}/camera")
        pipe.send("created")
        pipe.recv()
        rendezvous.close()

    child = fork(create, uid=SOMEBODY_ELSE)
    child.receive()
    with pytest.raises(PermissionError, match="a socket of user 65534 is in its place"):
        listen(f"shm:{shared}/camera")
    child.pipe.send("close")
    child.result()
    assert os.listdir(shared) == []


def test_a_full_descriptor_table_loses_nobody(names):
    rendezvous = listen("shm:camera")
    mine = connect("shm:camera")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        with pytest.raises(OSError, match="accept on shm:camera: Too many open files") as caught:
            rendezvous.accept()
        assert caught.value.errno == errno.EMFILE
        with pytest.raises(OSError, match="Too many open files"):
            connect("shm:camera")
        with pytest.raises(OSError, match="Too many open files"):
            BACKEND.appearance("shm:camera")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    theirs = rendezvous.accept()
    assert theirs is not None
    close(mine, theirs)
    rendezvous.close()


# -- the end ---------------------------------------------------------------------------------------------------------


def test_close_removes_the_node_and_hangs_up(names):
    rendezvous = listen("shm:camera")
    mine = connect("shm:camera")
    rendezvous.close()
    rendezvous.close()
    assert os.listdir(names) == []
    assert os.read(mine.fd, 10) == b""
    close(mine)
    for call in (rendezvous.fileno, rendezvous.accept):
        with pytest.raises(ValueError, match="on shm:camera: it is closed"):
            call()
    assert repr(rendezvous) == "<ShmRendezvous shm:camera closed>"


def test_close_leaves_a_node_that_took_its_place(names):
    old = listen("shm:camera")
    os.unlink(names / "camera")
    new = listen("shm:camera")
    old.close()
    assert reaches("shm:camera", new)
    new.close()
    assert os.listdir(names) == []
    old = listen("shm:camera")
    os.unlink(names / "camera")
    (names / "camera").touch()
    old.close()
    assert os.listdir(names) == ["camera"]


def test_close_survives_the_loss_of_the_directory(names):
    rendezvous = listen("shm:camera")
    shutil.rmtree(names)
    rendezvous.close()
    rendezvous = listen("shm:camera")
    moved = names.rename(names.with_name("moved"))
    rendezvous.close()
    assert os.listdir(moved) == []


def test_a_dropped_rendezvous_is_closed(names):
    listen("shm:camera")
    gc.collect()
    assert os.listdir(names) == []


def test_a_process_that_ends_leaves_nothing(names, spawn):
    def create(pipe):
        from bulktransfer.backends.shm import BACKEND

        global kept
        kept = BACKEND.listen("shm:camera", backlog=1, allow_users=())
        pipe.send("created")
        pipe.recv()

    child = spawn(create)
    assert child.receive() == "created"
    assert os.listdir(names) == ["camera"]
    child.send("end")
    child.join()
    assert os.listdir(names) == []


def test_a_forked_child_leaves_the_node_alone(names):
    rendezvous = listen("shm:camera")
    keep = [rendezvous]

    def end():
        for call in (rendezvous.fileno, rendezvous.accept):
            with pytest.raises(ForkedError, match=r"on shm:camera: it was created in process \d+, before a fork"):
                call()
        rendezvous.close()
        rendezvous._finalizer()
        keep.clear()
        gc.collect()
        assert os.listdir(names) == ["camera"]
        with pytest.raises(OSError, match="in use"):
            listen("shm:camera")

    in_child(end)
    assert reaches("shm:camera", rendezvous)
    rendezvous.close()
    assert os.listdir(names) == []


def test_a_forked_child_does_not_keep_the_address_alive(names):
    def create(pipe):
        rendezvous = listen("shm:camera")
        grandchild = fork(lambda pipe: pipe.recv())
        pipe.send(grandchild.pid)
        pipe.recv()
        rendezvous.close()

    child = fork(create)
    child.receive()
    child.kill()
    rendezvous = listen("shm:camera")
    rendezvous.close()


# -- appearance ------------------------------------------------------------------------------------------------------


def test_appearance_is_readable_once_the_address_is_created(names):
    watch = BACKEND.appearance("shm:camera")
    assert mode_of(names) == 0o700
    assert not readable(watch)
    rendezvous = listen("shm:camera")
    assert readable(watch, 30)
    watch.clear()
    watch.clear()
    assert not readable(watch)
    rendezvous.close()
    watch.close()
    watch.close()
    with pytest.raises(ValueError, match="closed"):
        watch.fileno()


def wait_for(address, owner=None):
    """As a binder waits: no creation is missed, nor does a wake-up come too early for good."""
    watch = BACKEND.appearance(address)
    try:
        while (end := connect(address, owner)) is None:
            assert readable(watch, 30), "the creation was missed"
            watch.clear()
        return end
    finally:
        watch.close()


def test_no_creation_is_missed(names):
    def create(pipe):
        while pipe.recv():
            rendezvous = listen("shm:camera")
            pipe.recv()
            rendezvous.close()
            pipe.send("closed")

    child = fork(create)
    for _ in range(300):
        child.pipe.send(True)
        end = wait_for("shm:camera")
        child.pipe.send("close")
        assert child.receive() == "closed"
        close(end)
    child.pipe.send(False)
    child.result()


def test_appearance_at_a_path_watches_its_parent(shared):
    watch = BACKEND.appearance(f"shm:{shared}/camera")
    rendezvous = listen(f"shm:{shared}/camera")
    assert readable(watch, 30)
    rendezvous.close()
    watch.close()


def test_appearance_follows_a_directory_that_was_removed(names):
    watch = BACKEND.appearance("shm:camera")
    names.rmdir()
    assert readable(watch, 30)
    watch.clear()
    assert names.is_dir()
    rendezvous = listen("shm:camera")
    assert readable(watch, 30)
    watch.clear()
    names.rename(names.with_name("moved"))
    assert readable(watch, 30)
    names.touch()
    with pytest.raises(PermissionError, match=r"wait for shm:camera: directory .* is not a directory"):
        watch.clear()
    watch.close()
    rendezvous.close()


def test_appearance_says_that_the_parent_of_a_path_was_removed(rendezvous_dir):
    (rendezvous_dir / "service").mkdir()
    watch = BACKEND.appearance(f"shm:{rendezvous_dir}/service/camera")
    (rendezvous_dir / "service").rmdir()
    assert readable(watch, 30)
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        watch.clear()
    watch.close()


@needs_root
def test_appearance_in_a_directory_that_may_not_be_listed_ticks(shared):
    shared.chmod(0o711)
    address = f"shm:{shared}/camera"

    def wait(pipe):
        watch = BACKEND.appearance(address)
        for _ in range(2):
            assert readable(watch, 30)
            watch.clear()
        watch.close()
        pipe.send("waiting")
        end = wait_for(address, owner=0)
        return end.peer.uid

    child = fork(wait, uid=SOMEBODY_ELSE)
    assert child.receive() == "waiting"
    rendezvous = listen(address, allow_users=[SOMEBODY_ELSE])
    assert child.result() == 0
    rendezvous.close()


@pytest.mark.parametrize("refused", ["inotify_init1", "inotify_add_watch"])
def test_appearance_without_inotify_ticks(names, monkeypatch, refused):
    class Libc:
        def __getattr__(self, name):
            return (lambda *_: -1) if name == refused else getattr(real, name)

    real = shm._libc
    monkeypatch.setattr(shm, "_libc", Libc())
    watch = BACKEND.appearance("shm:camera")
    for _ in range(2):
        assert readable(watch, 30)
        watch.clear()
    watch.close()


def test_clear_is_bounded_however_much_happens(names):
    watch = BACKEND.appearance("shm:camera")
    for number in range(2000):
        (names / f"file{number}").touch()
    watch.clear()
    assert not readable(watch)
    watch.close()
