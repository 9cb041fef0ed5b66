"""Attacks on the place where two sides meet: the directory, the node in it, and other users."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path

import bulktransfer as bulk
from adversary import raw
from adversary.arena import until
from adversary.floods import held_up
from adversary.registry import ANY, KEPT_OUT, attack
from adversary.setup import gets_in
from bulktransfer import Direction, Trust
from forking import SOMEBODY_ELSE, fork, in_child

NOT_FOLLOWED = "PermissionError or OSError; the attacker's file stays as it was, and nobody speaks to its owner"


def refused(act):
    try:
        thing = act()
    except (OSError, bulk.BulkError) as error:
        return type(error).__name__
    thing.close()
    raise AssertionError("it was taken for an endpoint")


@attack(ANY, NOT_FOLLOWED)
def something_else_in_place_of_the_endpoint(arena):
    """Put a file, a directory, a FIFO, a symbolic link to another socket, to a file or to nothing, or a socket of
    another kind where the victim creates or binds."""
    here = Path(os.environ["BULKTRANSFER_DIR"])
    here.mkdir(mode=0o700, exist_ok=True)
    precious = here / "precious"
    precious.write_text("precious")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as far,
    ):
        far.bind(str(here / "far"))
        far.listen()
        other.bind(str(here / "stream"))
        other.listen()
        (here / "file").write_text("x")
        (here / "directory").mkdir()
        os.mkfifo(here / "fifo")
        (here / "link").symlink_to(precious)
        (here / "dangling").symlink_to(here / "nothing")
        (here / "to-socket").symlink_to(here / "far")
        for name in ("file", "directory", "fifo", "link", "dangling", "to-socket", "stream"):
            node = here / name
            before = os.lstat(node)
            create = refused(lambda name=name: bulk.create(
                f"shm:{name}", direction=Direction.TX, trust=Trust.FULL, domain=arena.victim
            ))  # fmt: skip
            bind = refused(lambda name=name: bulk.bind(f"shm:{name}", domain=arena.victim, timeout=0.2))
            assert os.lstat(node) == before or name == "directory"
            arena.note(f"{name}: {create}, {bind}")
        assert precious.read_text() == "precious"
        far.setblocking(False)
        try:
            far.accept()
        except BlockingIOError:
            pass
        else:
            raise AssertionError("the victim spoke to whom a link led")


@attack(ANY, NOT_FOLLOWED)
def a_directory_that_others_can_write(arena):
    """Have the victim meet in a directory where anybody may replace its node."""
    here = Path(os.environ["BULKTRANSFER_DIR"])
    for mode in (0o777, 0o770, 0o707, 0o755):
        os.environ["BULKTRANSFER_DIR"] = str(here / f"open-{mode:o}")
        try:
            os.mkdir(os.environ["BULKTRANSFER_DIR"])
            os.chmod(os.environ["BULKTRANSFER_DIR"], mode)
            kind = refused(lambda: bulk.create(
                "shm:x", direction=Direction.TX, trust=Trust.FULL, domain=arena.victim
            ))  # fmt: skip
            arena.note(f"mode {mode:o}: {kind}")
        finally:
            os.environ["BULKTRANSFER_DIR"] = str(here)


@attack(ANY, KEPT_OUT, root=True)
def another_user_s_process(arena):
    """Connect as another user: by the path of the node, by its library, as one who is not named."""
    channel = arena.create()
    path = f"{os.environ['BULKTRANSFER_DIR']}/{channel.address.removeprefix('shm:')}"

    def connect():
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(path)

    assert refused(lambda: in_child(connect, uid=SOMEBODY_ELSE)) == "PermissionError"
    open_to_all = Path(tempfile.mkdtemp(prefix="bulk-users-", dir=os.environ.get("BULK_TEST_TMP", "/tmp")))
    try:
        open_to_all.chmod(0o1777)
        shared = bulk.create(
            f"shm:{open_to_all}/camera", direction=Direction.RX, trust=arena.trust, domain=arena.victim,
            allow_users=[SOMEBODY_ELSE],
        )  # fmt: skip
        arena.world.made.append(shared)

        def intrude(pipe):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(f"{open_to_all}/camera")
                with contextlib.suppress(BrokenPipeError):  # it is quick to hang up
                    sock.send(raw.hello())
                return sock.recv(4096)

        stranger = fork(intrude, uid=SOMEBODY_ELSE - 1)
        until(lambda: arena.victim.serve() or stranger.pipe.poll(0))
        assert stranger.result() == b""
        arena.note("hung up on")

        def stick(sock):
            def leave(pipe):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as mine:
                    mine.connect(f"{open_to_all}/camera")
                    socket.send_fds(mine, [b"x"], [sock.fileno()])
                    pipe.send("sent")
                    pipe.recv()

            child = fork(leave, uid=SOMEBODY_ELSE - 1)
            sock.close()
            assert child.receive() == "sent"
            child.kill()  # the victim is the last owner
            arena.victim.serve()

        held_up(arena, stick)
    finally:
        shutil.rmtree(open_to_all)
    gets_in(arena, channel)


@attack(ANY, KEPT_OUT)
def those_who_knock_when_the_endpoint_closes(arena):
    """Hold a close up: leave lingering descriptors with a creator that goes away, accepted and not accepted."""
    channel = arena.create()

    def strike(sock):
        for _ in range(3):
            socket.send_fds(arena.connect(channel), [b"x"], [sock.fileno()])
        sock.close()
        channel.close()

    held_up(arena, strike)
    gets_in(arena, arena.create())
