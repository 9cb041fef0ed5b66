"""Names across machines, kept by Zenoh: no server, and the network says when an owner is gone.

Knows: Zenoh's liveliness tokens (who is there) and queryables (where). Must not know: what an address means.
Needs the extra `zenoh`. By default peers meet on this machine's loopback only; whoever wants more gives a
configuration of Zenoh's own, which also says how peers authenticate each other.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

from .service import Entry, check_name

PREFIX: Final = "bulktransfer/names"
CONFIGURATION: Final = "BULKTRANSFER_ZENOH"  # the path of a configuration of Zenoh's
_LOOPBACK: Final = {
    "mode": "peer",
    "listen/endpoints": ["tcp/127.0.0.1:0"],
    "scouting/multicast/interface": "lo",
}


class ZenohRegistration:
    """A name that this process owns; made by ZenohNames.register."""

    def __init__(self, entry: Entry, queryable: Any, token: Any) -> None:
        self.entry = entry
        self._declared = [token, queryable]  # the token goes first: what is not there is not asked

    def close(self) -> None:
        """Give the name up; idempotent, never raises."""
        declared, self._declared = self._declared, []
        for each in declared:
            with contextlib.suppress(Exception):  # the session may be closed: then all is given up already
                each.undeclare()

    def __repr__(self) -> str:
        return f"<ZenohRegistration of {self.entry.name}{'' if self._declared else ', closed'}>"


class ZenohWatch:
    """Readable once a token came or went."""

    def __init__(self, session: Any, key: str) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._subscriber = session.liveliness().declare_subscriber(key, self._on_sample, history=True)

    def _on_sample(self, sample: object) -> None:
        if self._fd >= 0:
            os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        """The descriptor. Raises: ValueError (closed)."""
        if self._fd < 0:
            raise ValueError("the watch is closed")
        return self._fd

    def clear(self) -> None:
        """Unreadable until the next change."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fileno())

    def close(self) -> None:
        """Stop watching; idempotent."""
        if self._fd >= 0:
            self._subscriber.undeclare()
            fd, self._fd = self._fd, -1
            os.close(fd)


class ZenohNames:
    """The names of all peers that Zenoh reaches.

    configuration: Zenoh's keys and values, or the path of a file; without it that of $BULKTRANSFER_ZENOH, else peers on
    loopback. timeout: seconds that an owner has to say where it is. Two owners that register one name at the same
    moment on two machines are not told of each other; `resolve` then says the same one to everybody.
    """

    def __init__(self, configuration: dict[str, Any] | str | None = None, *, timeout: float = 2.0) -> None:
        zenoh: Any = importlib.import_module("zenoh")
        chosen = configuration or os.environ.get(CONFIGURATION) or _LOOPBACK
        if isinstance(chosen, str):
            config = zenoh.Config.from_file(chosen)
        else:
            config = zenoh.Config()
            for key, value in chosen.items():
                config.insert_json5(key, json.dumps(value))
        self._timeout = timeout
        self._session = zenoh.open(config)

    def register(self, name: str, address: str) -> ZenohRegistration:
        """Own `name`. Raises: OSError (EADDRINUSE: a living owner has it), TypeError, ValueError."""
        check_name("register", name)
        owner = self.resolve(name)
        if owner is not None:
            raise OSError(errno.EADDRINUSE, f"register {name!r}: {owner.host} has it, at {owner.address}")
        entry = Entry(name, address, os.getpid(), os.geteuid(), socket.gethostname())
        data = json.dumps(entry.as_dict())
        key = f"{PREFIX}/{name}"
        queryable = self._session.declare_queryable(key, lambda query: query.reply(key, data), complete=True)
        return ZenohRegistration(entry, queryable, self._session.liveliness().declare_token(key))

    def resolve(self, name: str) -> Entry | None:
        """Who owns `name` now, or None. Raises: TypeError, ValueError."""
        check_name("resolve", name)
        return next(iter(self._ask(f"{PREFIX}/{name}")), None)

    def entries(self) -> Sequence[Entry]:
        """Every name that has a living owner, sorted."""
        return self._ask(f"{PREFIX}/*")

    def _ask(self, key: str) -> list[Entry]:
        """What the living say."""
        living = {
            str(reply.ok.key_expr) for reply in self._session.liveliness().get(key, timeout=self._timeout) if reply.ok
        }
        found = set()
        for one in living:
            for reply in self._session.get(one, timeout=self._timeout):
                if reply.ok:
                    with contextlib.suppress(ValueError, TypeError):  # not written by this library
                        found.add(Entry(**json.loads(reply.ok.payload.to_string())))
        return sorted(found)

    def watch(self, name: str | None = None) -> ZenohWatch:
        """Watch one name, or all. Raises: TypeError, ValueError."""
        return ZenohWatch(self._session, f"{PREFIX}/{'*' if name is None else check_name('watch', name)}")

    def close(self) -> None:
        """Give every name up, and leave the network. Idempotent."""
        self._session.close()

    def __repr__(self) -> str:
        return f"<ZenohNames {self._session}>"
