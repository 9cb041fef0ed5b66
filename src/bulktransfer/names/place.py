"""The directory of this user where names are kept, and a watch on it.

Knows: where it is, that it belongs to this user alone, and inotify. Must not know: what is in it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import tempfile
from typing import Final

_IN_CLOSE_WRITE, _IN_MOVED, _IN_DELETE, _IN_ONLYDIR = 0x8, 0xC0, 0x200, 0x1000000
_WATCHED: Final = _IN_CLOSE_WRITE | _IN_MOVED | _IN_DELETE | _IN_ONLYDIR
_libc = ctypes.CDLL(None, use_errno=True)


def directory() -> str:
    """The directory of this user's names, made if it is missing: beside the nodes of shm:, of mode 0700.

    Raises: ValueError (BULKTRANSFER_DIR is not a path), PermissionError (it is not this user's alone), OSError.
    """
    above = os.environ.get("BULKTRANSFER_DIR")
    if above and not os.path.isabs(above):
        raise ValueError(f"BULKTRANSFER_DIR is {above!r}, not an absolute path")
    if not above:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        if runtime and os.path.isabs(runtime):
            above = os.path.join(runtime, "bulktransfer")
        else:
            above = os.path.join(tempfile.gettempdir(), f"bulktransfer-{os.geteuid()}")
    path = os.path.join(above, "names")
    for each in (above, path):
        try:
            os.mkdir(each, 0o700)
        except FileExistsError:
            check(each)
    return path


def check(path: str) -> None:
    """Whether nobody else can write there. Raises: PermissionError, NotADirectoryError."""
    facts = os.lstat(path)
    if not stat.S_ISDIR(facts.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, f"directory of names {path!r}: it is none")
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise PermissionError(
            errno.EACCES, f"directory of names {path!r}: others than user {os.geteuid()} can write there"
        )


class DirectoryWatch:
    """Readable once a file of a directory was replaced, removed, or closed by the one who wrote it.

    The last is what the kernel does for an owner that died. Raises: OSError.
    """

    def __init__(self, path: str) -> None:
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), f"watching {path!r}: {os.strerror(ctypes.get_errno())}")
        if _libc.inotify_add_watch(self._fd, os.fsencode(path), _WATCHED) < 0:
            number = ctypes.get_errno()
            self.close()
            raise OSError(number, f"watching {path!r}: {os.strerror(number)}")

    def fileno(self) -> int:
        """The descriptor. Raises: ValueError (closed)."""
        if self._fd < 0:
            raise ValueError("the watch is closed")
        return self._fd

    def clear(self) -> None:
        """Take what is there."""
        try:
            while os.read(self.fileno(), 4096):
                continue
        except BlockingIOError:
            return

    def close(self) -> None:
        """Stop watching; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()
