"""The block client of the report (I-7.1.2): it stands between the users of one machine and a server on another."""

from .proxy import BlockProxy

__all__ = ["BlockProxy"]
