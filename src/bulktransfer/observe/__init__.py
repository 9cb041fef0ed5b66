"""The channels and pools of all processes of the user, as they are at this moment; nobody notices being looked at."""

from __future__ import annotations

from .finding import Views, look, view
from .metrics import instrument
from .view import ChannelView, PoolView, ProcessView

__all__ = ["ChannelView", "PoolView", "ProcessView", "Views", "instrument", "look", "view"]
