"""What the tests of the backend `shm:` share."""

from __future__ import annotations

import os
import select
import socket
import stat

from bulktransfer.backends.shm import BACKEND

ME = os.geteuid()


def listen(address, *, backlog=8, allow_users=()):
    return BACKEND.listen(address, backlog=backlog, allow_users=allow_users)


def connect(address, owner=None):
    return BACKEND.connect(address, owner=owner)


def readable(thing, timeout_s=0.0):
    return bool(select.select([thing], [], [], timeout_s)[0])


def close(*connections):
    for connection in connections:
        os.close(connection.fd)


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def leave_stale(path, kind=socket.SOCK_SEQPACKET):
    """A node as kill -9 leaves it."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))


def reaches(address, rendezvous):
    """Whether a connection to `address` arrives at `rendezvous`."""
    mine = connect(address)
    theirs = rendezvous.accept()
    close(*(end for end in (mine, theirs) if end is not None))
    return theirs is not None
