"""Promises about the places of `shm:` addresses: fit directories, nodes that are in the way, and races for a name."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path

import pytest

from bulktransfer.backends import _shm_node
from bulktransfer.backends.shm import BACKEND
from forking import SOMEBODY_ELSE, fork, in_child, needs_root
from shm_tools import ME, connect, leave_stale, listen, mode_of, reaches


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


# -- the directory ---------------------------------------------------------------------------------------------------


def test_the_directory_follows_the_environment(rendezvous_dir, monkeypatch):
    monkeypatch.setenv("BULKTRANSFER_DIR", f"{rendezvous_dir}/one/")
    assert _shm_node.place_of("create", "shm:a").directory == f"{rendezvous_dir}/one"
    monkeypatch.setenv("BULKTRANSFER_DIR", "")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(rendezvous_dir))
    assert _shm_node.place_of("create", "shm:a").directory == f"{rendezvous_dir}/bulktransfer"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert _shm_node.place_of("create", "shm:a").directory == f"{tempfile.gettempdir()}/bulktransfer-{ME}"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.delenv("BULKTRANSFER_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(rendezvous_dir))
    rendezvous = listen("shm:a")
    assert mode_of(rendezvous_dir / f"bulktransfer-{ME}") == 0o700
    assert reaches("shm:a", rendezvous)
    rendezvous.close()
    monkeypatch.setenv("BULKTRANSFER_DIR", "relative")
    for call in (listen, connect, BACKEND.appearance):
        with pytest.raises(ValueError, match="BULKTRANSFER_DIR is 'relative', not an absolute path"):
            call("shm:a")


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_the_directory_is_created_for_this_user_alone(names, umask):
    old = os.umask(umask)
    try:
        rendezvous = listen("shm:camera")
    finally:
        os.umask(old)
    assert mode_of(names) == 0o700
    rendezvous.close()


def refused_by_all(error, text):
    for call in (listen, connect, BACKEND.appearance):
        with pytest.raises(error, match=text):
            call("shm:camera")


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o770, 0o1777])
def test_a_directory_that_others_can_use_is_refused(names, mode):
    names.mkdir()
    names.chmod(mode)
    refused_by_all(PermissionError, f"directory '{names}' has mode {mode:04o}, so that others can use it")
    assert os.listdir(names) == []


@pytest.mark.parametrize("ending", ["", "/", "/."])
def test_a_directory_that_is_a_symbolic_link_is_refused(names, rendezvous_dir, monkeypatch, ending):
    (rendezvous_dir / "real").mkdir(mode=0o700)
    names.symlink_to("real")
    monkeypatch.setenv("BULKTRANSFER_DIR", f"{names}{ending}")
    refused_by_all(PermissionError, f"directory '{names}' is a symbolic link")
    names.unlink()
    names.symlink_to("nowhere")
    refused_by_all(PermissionError, "is a symbolic link")


def test_a_directory_that_is_swapped_after_the_first_look_is_refused(names, rendezvous_dir, monkeypatch):
    fit = os.lstat(rendezvous_dir)
    monkeypatch.setattr(_shm_node.os, "lstat", lambda path: fit)
    names.mkdir()
    names.chmod(0o755)
    refused_by_all(PermissionError, "has mode 0755")
    names.rmdir()
    names.symlink_to(rendezvous_dir)
    refused_by_all(NotADirectoryError, f"directory '{names}': Not a directory")


def test_a_directory_that_is_none_is_refused(names):
    names.touch(mode=0o600)
    refused_by_all(PermissionError, f"directory '{names}' is not a directory")


def test_a_directory_of_another_user_is_refused(names, monkeypatch):
    names.mkdir(mode=0o700)
    if ME == 0:
        os.chown(names, SOMEBODY_ELSE, SOMEBODY_ELSE)
    else:
        monkeypatch.setattr(_shm_node.os, "geteuid", lambda: ME + 1)
    refused_by_all(PermissionError, f"directory '{names}' belongs to user")


@needs_root
def test_a_directory_that_the_system_does_not_open_is_refused_for_its_owner(shared, monkeypatch):
    monkeypatch.setenv("BULKTRANSFER_DIR", str(shared / "names"))
    (shared / "names").mkdir(mode=0o700)
    for call in (listen, connect, BACKEND.appearance):
        with pytest.raises(PermissionError, match="belongs to user 0, not to user 65534"):
            in_child(lambda call=call: call("shm:camera"), uid=SOMEBODY_ELSE)


def test_a_missing_parent_is_named(names, monkeypatch):
    monkeypatch.setenv("BULKTRANSFER_DIR", str(names / "deeper"))
    for call in (listen, BACKEND.appearance):
        with pytest.raises(FileNotFoundError, match=f"shm:camera: directory '{names}/deeper': No such file"):
            call("shm:camera")
    assert connect("shm:camera") is None
    for call in (listen, BACKEND.appearance):
        with pytest.raises(FileNotFoundError, match=f"there is no directory '{names}'"):
            call(f"shm:{names}/camera")
    names.touch()
    for call in (listen, connect, BACKEND.appearance):
        with pytest.raises(NotADirectoryError, match=f"shm:{names}/camera"):
            call(f"shm:{names}/camera")


def test_a_parent_where_anybody_may_replace_the_node_is_refused(shared):
    shared.chmod(0o777)
    with pytest.raises(PermissionError, match=f"anybody may replace what is in '{shared}'"):
        listen(f"shm:{shared}/camera")
    shared.chmod(0o1777)
    listen(f"shm:{shared}/camera").close()


# -- the node --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_the_node_has_its_mode_from_the_beginning(names, umask, monkeypatch):
    names.mkdir(mode=0o700)
    seen = []
    monkeypatch.setattr(_shm_node.os, "chmod", lambda path, mode: seen.append(mode_of(names / "camera")))
    old = os.umask(umask)
    try:
        rendezvous = listen("shm:camera")
    finally:
        os.umask(old)
    rendezvous.close()
    assert seen == [0o600 & ~umask]  # before the chmod that gives back what the umask took
    monkeypatch.undo()
    old = os.umask(umask)
    try:
        rendezvous = listen(f"shm:{names}/camera")
    finally:
        os.umask(old)
    assert mode_of(names / "camera") == 0o600
    rendezvous.close()


def test_only_a_node_for_other_users_has_a_mode_for_them(shared):
    for users, mode in (((), 0o600), ((ME,), 0o600), ((ME + 1,), 0o666)):
        rendezvous = listen(f"shm:{shared}/camera", allow_users=users)
        assert mode_of(shared / "camera") == mode
        rendezvous.close()


def test_a_live_address_is_in_use(names):
    rendezvous = listen("shm:camera")

    def again():
        listen("shm:camera")

    for attempt in (again, lambda: in_child(again), lambda: listen(f"shm:{names}/camera")):
        with pytest.raises(OSError, match="the address is in use") as caught:
            attempt()
        assert caught.value.errno == errno.EADDRINUSE
    assert rendezvous.accept() is None  # asking has not knocked
    assert reaches("shm:camera", rendezvous)
    rendezvous.close()
    listen("shm:camera").close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_the_socket_of_another_program_is_in_use(shared, kind):
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(f"{shared}/camera")
        with pytest.raises(OSError, match="the address is in use"):
            listen(f"shm:{shared}/camera")
        with pytest.raises(OSError, match="wrong type") as caught:
            connect(f"shm:{shared}/camera")
        assert caught.value.errno == errno.EPROTOTYPE


def test_a_socket_that_does_not_listen_yet_is_in_use_and_not_found(shared):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(f"{shared}/camera")
        assert connect(f"shm:{shared}/camera") is None
        with pytest.raises(OSError, match="the address is in use"):
            listen(f"shm:{shared}/camera")


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_a_stale_node_is_replaced(names, kind):
    names.mkdir(mode=0o700)
    leave_stale(names / "camera", kind)
    assert connect("shm:camera") is None
    rendezvous = listen("shm:camera")
    assert reaches("shm:camera", rendezvous)
    rendezvous.close()
    assert os.listdir(names) == []


def test_what_kill_9_leaves_is_replaced(names):
    def create(pipe):
        rendezvous = listen("shm:camera")
        pipe.send("created")
        pipe.recv()
        return rendezvous

    child = fork(create)
    assert child.receive() == "created"
    with pytest.raises(OSError, match="in use"):
        listen("shm:camera")
    child.kill()
    assert os.listdir(names) == ["camera"]
    assert connect("shm:camera") is None
    rendezvous = listen("shm:camera")
    assert reaches("shm:camera", rendezvous)
    rendezvous.close()


def test_what_is_no_socket_is_never_removed(names):
    names.mkdir(mode=0o700)
    node = names / "camera"

    def refused(error, number):
        before = os.lstat(node)
        with pytest.raises(error, match=r"create shm:camera: .* is in its place"):
            listen("shm:camera")
        with pytest.raises(OSError, match=r"connect shm:camera: .* is in its place") as caught:
            connect("shm:camera")
        assert caught.value.errno == number
        assert os.lstat(node) == before

    node.write_text("precious")
    refused(FileExistsError, errno.ENOTSOCK)
    node.unlink()
    node.mkdir()
    refused(FileExistsError, errno.ENOTSOCK)
    node.rmdir()
    os.mkfifo(node)
    refused(FileExistsError, errno.ENOTSOCK)
    node.unlink()
    leave_stale(names / "target")
    for target in ("nowhere", "target"):
        node.symlink_to(target)
        refused(PermissionError, errno.EACCES)
        node.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        os.unlink(names / "target")
        other.bind(str(names / "target"))
        other.listen()
        node.symlink_to("target")
        refused(PermissionError, errno.EACCES)


def test_the_stale_node_of_another_user_is_never_removed(shared, monkeypatch):
    leave_stale(shared / "camera")
    if ME == 0:
        os.chown(shared / "camera", SOMEBODY_ELSE, SOMEBODY_ELSE)
    else:
        monkeypatch.setattr(_shm_node.os, "geteuid", lambda: ME + 1)
    with pytest.raises(PermissionError, match=r"a socket of user .* is in its place"):
        listen(f"shm:{shared}/camera")
    with pytest.raises(PermissionError, match=r"it belongs to user .*, not to user"):
        connect(f"shm:{shared}/camera")
    assert os.listdir(shared) == ["camera"]


def test_a_creation_that_fails_leaves_nothing(names, monkeypatch):
    def refuse(path, mode):
        raise OSError(errno.EROFS, "no")

    monkeypatch.setattr(_shm_node.os, "chmod", refuse)
    with pytest.raises(OSError, match="no"):
        listen("shm:camera")
    assert os.listdir(names) == []


# -- races -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_two_racing_processes_gets_the_name(names, stale):
    names.mkdir(mode=0o700)

    def race(pipe):
        while pipe.recv():
            try:
                rendezvous = listen("shm:camera")
            except OSError as error:
                assert error.errno == errno.EADDRINUSE
                pipe.send("lost")
                pipe.recv()
            else:
                pipe.send("won")
                pipe.recv()
                assert reaches("shm:camera", rendezvous)
                rendezvous.close()
            pipe.send("closed")

    children = [fork(race), fork(race)]

    def tell(thing):
        for child in children:
            child.pipe.send(thing)

    for _ in range(300):
        if stale:
            leave_stale(names / "camera")
        tell(True)
        assert sorted(child.receive() for child in children) == ["lost", "won"]
        tell("close")
        assert [child.receive() for child in children] == ["closed", "closed"]
        assert os.listdir(names) == []
    tell(False)
    for child in children:
        child.result()


def test_one_of_many_racing_threads_gets_the_name(names):
    won, barrier = [], threading.Barrier(4)

    def create():
        for number in range(50):
            barrier.wait()
            try:
                won.append((number, listen(f"shm:camera{number}")))
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


def test_creation_waits_for_the_lock(names):
    names.mkdir(mode=0o700)
    lock = os.open(names, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    created = []
    thread = threading.Thread(target=lambda: created.append(listen("shm:camera")))
    thread.start()
    assert not created
    assert os.listdir(names) == []
    os.close(lock)
    thread.join()
    assert reaches("shm:camera", created[0])
    created[0].close()


def test_a_lock_that_stays_taken_ends_the_wait(names, monkeypatch):
    monkeypatch.setattr(_shm_node, "LOCK_TIMEOUT_S", 0.01)
    rendezvous = listen("shm:other")
    lock = os.open(names, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(OSError, match="create shm:camera: another process holds the lock of the directory") as caught:
        listen("shm:camera")
    assert caught.value.errno == errno.EBUSY
    rendezvous.close()  # does not wait, and cleans up all the same
    assert os.listdir(names) == []
    os.close(lock)
