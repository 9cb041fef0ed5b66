"""A file system in user space that lets a file be opened and then never answers again: stat, statfs, close all hang.

It takes root (for a mount namespace of its own) and /dev/fuse. It runs in a child; when that is told to end it answers
everything with an error, so that whoever hangs goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import tempfile
import threading
from typing import Any

HEAD = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
LOOKUP, GETATTR, OPEN, INIT = 1, 3, 14, 26
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18


def attributes(mode: int) -> bytes:
    return struct.pack("<6Q10I", 2, 1 << 20, 2048, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def refuse(device: int, unique: int) -> None:
    with contextlib.suppress(OSError):  # it was interrupted
        os.write(device, struct.pack("<IiQ", 16, -5, unique))


def serve(device: int, ending: threading.Event, unanswered: list[int]) -> None:
    """Answer what an open takes, and nothing else before the end."""
    while True:
        request = os.read(device, 1 << 20)
        _, opcode, unique, node, *_ = HEAD.unpack_from(request)
        if opcode == INIT:
            body = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, 0)
        elif opcode == LOOKUP:
            body = struct.pack("<QQQQII", 2, 1, 3600, 3600, 0, 0) + attributes(0o100666)
        elif opcode == OPEN:
            body = struct.pack("<QII", 1, 0, 0)
        elif opcode == GETATTR and node == 1:
            body = struct.pack("<QII", 3600, 0, 0) + attributes(0o40777)
        else:
            unanswered.append(unique)
            while ending.is_set() and unanswered:
                refuse(device, unanswered.pop())
            continue
        os.write(device, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)


def hand_over(pipe: Any, messages: list[tuple[socket.socket, bytes]]) -> None:
    """The child: send each message with a descriptor of such a file beside it, then stay until told to end."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = tempfile.mkdtemp(prefix="bulk-silence-")
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "a mount namespace")
    if libc.mount(b"silence", here.encode(), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), "mounting a file system in user space")
    ending = threading.Event()
    unanswered: list[int] = []
    threading.Thread(target=serve, args=(device, ending, unanswered), daemon=True).start()
    files = [os.open(f"{here}/file", os.O_RDWR) for _ in messages]
    for (sock, words), file in zip(messages, files, strict=True):
        socket.send_fds(sock, [words], [file] * 2)
    pipe.send(here)
    pipe.recv()
    ending.set()
    while unanswered:
        refuse(device, unanswered.pop())
    for file in files:
        os.close(file)
