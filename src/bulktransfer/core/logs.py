"""The logger of channels: what begins, and how it ends; silent unless the program asks for it.

Knows: which end is worth which level. Must not know: transfers, which nobody logs.
"""

from __future__ import annotations

import logging
from typing import Any

from ..errors import BrokenChannelError, ProtocolViolation

logging.getLogger("bulktransfer").addHandler(logging.NullHandler())
_log = logging.getLogger("bulktransfer.channel")
_LEVELS: dict[type[Any], int] = {BrokenChannelError: logging.INFO, ProtocolViolation: logging.WARNING}


def connected(channel: Any) -> None:
    """A channel has its peer."""
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug(f"{channel!r} is connected to {channel.peer}")  # a record that somebody keeps does not keep it


def ended(channel: Any, cls: type[Any], message: str) -> None:
    """A channel is over; one that a finalizer closes says nothing, since handlers are code of the user."""
    if not channel.finalizing:
        _log.log(_LEVELS.get(cls, logging.DEBUG), "%s", message)
