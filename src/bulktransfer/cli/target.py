"""Where a received file goes: it is there whole, under its name, or not at all.

Knows: files, and which names a stranger may choose. Must not know: where the bytes come from.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path

STDOUT = "-"


class Unwanted(Exception):
    """The file cannot be put there; the message says where and why."""


def name_for(offered: str) -> str:
    """The name for a file that a stranger named so, in the current directory. Raises: Unwanted."""
    if offered != os.path.basename(offered) or offered in ("", ".", "..") or not offered.isprintable():
        raise Unwanted(f"the name that was offered is not one for a file here: {offered!r}; choose one with --output")
    if offered.startswith("."):
        raise Unwanted(f"the name that was offered is that of a hidden file: {offered!r}; choose one with --output")
    return offered


class Target:
    """A file that is written beside its place, and put there by `commit`; a context manager."""

    def __init__(self, name: str, *, force: bool) -> None:
        """Raises: Unwanted (it exists, and not `force`), OSError."""
        self.name = name
        self._place = Path(name)
        self._force = force
        self._temporary: str | None = None
        if name == STDOUT:
            self._fd = os.dup(sys.stdout.fileno())
            return
        with contextlib.suppress(FileNotFoundError):
            facts = os.stat(name)
            if stat.S_ISDIR(facts.st_mode):
                raise Unwanted(f"{name} is a directory; say the file with --output")
            if not stat.S_ISREG(facts.st_mode):  # /dev/null, a pipe, a disk: written to as it is
                self._fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC)
                return
            if not force:
                raise self._exists()
        self._fd, self._temporary = tempfile.mkstemp(
            prefix=f".{self._place.name[:200]}.", suffix=".part", dir=self._place.parent
        )

    def write(self, data: memoryview) -> None:
        """All of it goes behind what went before. Raises: OSError."""
        while data:
            data = data[os.write(self._fd, data) :]

    def commit(self) -> None:
        """Now it is there, under its name. Raises: Unwanted (somebody else put one there meanwhile), OSError."""
        if self._temporary is None:
            return
        umask = os.umask(0o077)
        os.umask(umask)
        os.fchmod(self._fd, 0o666 & ~umask)
        if self._force:
            os.replace(self._temporary, self._place)
        else:
            try:
                os.link(self._temporary, self._place)  # fails where there is something, as a rename does not
            except FileExistsError:
                raise self._exists() from None
            os.unlink(self._temporary)
        self._temporary = None

    def _exists(self) -> Unwanted:
        return Unwanted(f"{self.name} exists; --force replaces it")

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
        if self._temporary is not None:
            os.unlink(self._temporary)
