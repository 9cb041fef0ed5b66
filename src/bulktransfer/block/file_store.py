"""A store in a file or on a block device: durable, sparse, past the page cache where asked.

Knows: descriptors, durability, holes, alignment. Must not know: requests, protocols.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from . import fallocate
from .errors import NoSpaceError, StoreError, UnsupportedError, of_system
from .store import BLOCK_SIZE, Extent, Store

ALIGNMENT = 4096  # a page: a direct write then never shares a page with a buffered one
_ZEROES = bytes(1 << 20)


class FileStore(Store):
    """Blocks in a file or on a block device.

    flush and fua return when the kernel says that the medium has the bytes (fdatasync, RWF_DSYNC). After a failed flush
    every later one fails as well: the kernel may have dropped the pages that it could not write, and would answer yes.
    direct: requests whose offset, length and memory are whole pages go past the page cache (O_DIRECT), others do not.
    create_bytes: make the file, of that size and all hole, if it is not there.
    Raises: OSError, StoreError (neither a file nor a block device).
    """

    can_fast_zero = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        block_size: int = BLOCK_SIZE,
        read_only: bool = False,
        direct: bool = False,
        create_bytes: int | None = None,
    ) -> None:
        self._path = Path(path)
        self._fd = self._direct_fd = -1
        self._ending = threading.Lock()
        self._failed = ""
        self._nowait = True
        if create_bytes is not None:
            _create(self._path, create_bytes)
        mode = os.O_RDONLY if read_only else os.O_RDWR
        self._fd = os.open(self._path, mode | os.O_CLOEXEC)
        try:
            kind = os.fstat(self._fd).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
                raise StoreError(f"{self._path} is neither a file nor a block device")
            super().__init__(os.lseek(self._fd, 0, os.SEEK_END), block_size=block_size, read_only=read_only)
            if direct:
                self._direct_fd = os.open(self._path, mode | os.O_CLOEXEC | os.O_DIRECT)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<FileStore {str(self._path)!r} of {self.size_bytes} bytes>"

    @property
    def prompt_writes(self) -> bool:  # type: ignore[override]
        """Whether a write ends in the page cache."""
        return self._direct_fd < 0

    @property
    def direct(self) -> bool:
        """Whether aligned requests go past the page cache."""
        return self._direct_fd >= 0

    def _descriptor(self, offset: int, memory: memoryview) -> int:
        """The direct descriptor for what is aligned, else the other one."""
        if self._direct_fd < 0 or offset % ALIGNMENT or len(memory) % ALIGNMENT or not len(memory):
            return self._fd
        if memory.readonly:  # its address cannot be asked for
            return self._fd
        aligned = ctypes.addressof(ctypes.c_char.from_buffer(memory)) % ALIGNMENT == 0
        return self._direct_fd if aligned else self._fd

    def _read_into(self, offset: int, into: memoryview) -> None:
        fd = self._descriptor(offset, into)
        done = 0
        while done < len(into):
            try:
                count = os.preadv(fd, [into[done:] if done else into], offset + done)
            except OSError as error:
                raise of_system(error, f"read of {len(into)} bytes at {offset} of {self!r}") from error
            if count == 0:
                raise StoreError(f"read of {len(into)} bytes at {offset}: {self!r} was made shorter")
            done += count
            if done % ALIGNMENT:
                fd = self._fd  # what is left is not aligned

    def try_read(self, offset: int, into: memoryview) -> bool:
        """Fill `into` if the page cache has it all, without waiting for the medium; whether it had."""
        if self._direct_fd >= 0 or not self._nowait:
            return False
        try:
            return os.preadv(self._fd, [into], offset, os.RWF_NOWAIT) == len(into)
        except BlockingIOError:
            return False
        except OSError:
            self._nowait = False  # this medium does not know the flag; a failure of its own shows in the read
            return False

    def all_hole(self, offset: int, length: int) -> bool:
        """Whether a range has no memory behind it."""
        with self._said("extents", offset, length):
            return fallocate.next_run(self._fd, offset, offset + length) == (offset + length, True)

    def _write(self, offset: int, data: memoryview, fua: bool) -> None:
        fd = self._descriptor(offset, data)
        flags = os.RWF_DSYNC if fua else 0
        done = 0
        try:
            while done < len(data):
                done += os.pwritev(fd, [data[done:] if done else data], offset + done, flags)
                if done % ALIGNMENT:
                    fd = self._fd
        except OSError as error:
            if fua and error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._doubt("write with fua", error)  # the kernel reports a failed write-back once, and it was here
            raise of_system(error, f"write of {len(data)} bytes at {offset} of {self!r}") from error
        if fua and self._failed:
            raise StoreError(self._failed)

    def _flush(self) -> None:
        if self._failed:
            raise StoreError(self._failed)
        if self.read_only:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._doubt("flush", error)
            raise StoreError(self._failed) from error

    def _doubt(self, act: str, error: OSError) -> None:
        self._failed = f"{act} of {self!r}: {error.strerror}; what was written before is in doubt"

    def _trim(self, offset: int, length: int) -> None:
        if length:
            with self._said("trim", offset, length):
                fallocate.punch_hole(self._fd, offset, length)  # a medium that cannot keeps its contents

    def _write_zeroes(self, offset: int, length: int, may_trim: bool, fast: bool) -> None:
        if not length:
            return
        with self._said("write_zeroes", offset, length):
            if may_trim and fallocate.punch_hole(self._fd, offset, length):
                return
            if fallocate.zero_range(self._fd, offset, length):
                return
        if fast:
            raise _slow(self, offset, length)
        with memoryview(_ZEROES) as zeroes:
            for begin in range(offset, offset + length, len(zeroes)):
                self._write(begin, zeroes[: offset + length - begin], False)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        while offset < end:
            with self._said("extents", offset, end - offset):
                until, hole = fallocate.next_run(self._fd, offset, end)
            yield Extent(until - offset, hole=hole, zero=hole)
            offset = until

    def cache(self, offset: int, length: int) -> None:
        """Have the kernel read a range ahead. Raises: BadBlockError, BadRequestError, StoreError."""
        super().cache(offset, length)
        with self._said("cache", offset, length):
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    @contextlib.contextmanager
    def _said(self, act: str, offset: int, length: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise of_system(error, f"{act} of {length} bytes at {offset} of {self!r}") from error

    def close(self) -> None:
        """Close the file; what was not flushed is the kernel's to write."""
        with self._ending:
            descriptors = [fd for fd in (self._fd, self._direct_fd) if fd >= 0]
            self._fd = self._direct_fd = -1
        for fd in descriptors:
            os.close(fd)


def _slow(store: FileStore, offset: int, length: int) -> Exception:
    return UnsupportedError(f"fast write_zeroes of {length} bytes at {offset}: {store!r} would have to write them")


def _create(path: Path, size_bytes: int) -> None:
    """Make an empty file of that size, and its name durable, unless it is there."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    try:
        os.ftruncate(fd, size_bytes)
        os.fsync(fd)
    except OSError as error:
        os.unlink(path)
        if error.errno in (errno.ENOSPC, errno.EFBIG):
            raise NoSpaceError(f"no room for {size_bytes} bytes in {path}: {error.strerror}") from error
        raise
    finally:
        os.close(fd)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
