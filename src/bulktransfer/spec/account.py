"""What happens to one domain's view of one buffer: the report's Figure 5.1, from ownership and copies.

Knows: the rules of design section 3 and 4.5 to 4.7, said in terms of who owns and which channels carry copies. Must
not know: other domains, queues, pools; nor the library's table of states, which a test compares with this file.

The names of the acts are those of that table.
"""

from __future__ import annotations

from .mistakes import COPY_WITH_COPIES_OUT_ACCEPTED, MOVE_WITH_COPIES_OUT, RELEASE_WITH_COPIES_OUT
from .state import INVALID, MOVE, PASS, READ_ONLY, READ_ONLY_OWNED, Refused, Rules, View

ACTS = (
    "MOVE",
    "PASS",
    "COPY",
    "RELEASE",
    "FULL_COPY",
    "MOVE_RECEIVED",
    "BUFFER_RECEIVED",
    "COPY_RECEIVED",
    "COPY_RELEASED",
    "MOVE_REFUSED",
    "COPY_REFUSED",
    "RECLAIMED",
    "DROP",
)


def call(view: View, act: str, channel: int, rules: Rules, loopback: bool = False) -> View | Refused:
    """A call made in this domain: the view after it, or the refusal (rules 5, 6)."""
    if view.free:
        return Refused("NotAllocatedError", "it is on its allocator's free list")
    if act in (MOVE, PASS):
        return _give_away(view, channel, rules)
    if act == "COPY":
        return _lend(view, channel, loopback)
    if act == "RELEASE":
        return _release(view, channel, rules)
    if view.state == INVALID:  # a full copy only reads
        return Refused("InvalidBufferError", "it is not in this domain")
    return view


def _give_away(view: View, channel: int, rules: Rules) -> View | Refused:
    if view.state == INVALID:
        return Refused("InvalidBufferError", "it is not in this domain")
    if view.state == READ_ONLY:
        return Refused("NotOwnedError", "this domain holds a copy only")
    if view.state == READ_ONLY_OWNED and MOVE_WITH_COPIES_OUT not in rules.mistakes:
        return Refused("CopiesOutstandingError", "copies of it are not back")
    return view._replace(owned=False, via=channel)


def _lend(view: View, channel: int, loopback: bool) -> View | Refused:
    if view.state == INVALID:
        return Refused("InvalidBufferError", "it is not in this domain")
    if loopback:
        return Refused("CopyRefusedError", "both ends of the channel are in one domain")
    if view.out >> channel & 1:
        return Refused("AlreadyCopiedError", "a copy of it is outstanding on this channel")
    return view._replace(out=view.out | 1 << channel)


def _release(view: View, channel: int, rules: Rules) -> View | Refused:
    if not view.held >> channel & 1:
        return Refused("NotACopyError", "no copy of it came over this channel")
    if view.out and RELEASE_WITH_COPIES_OUT not in rules.mistakes:
        return Refused("CopiesOutstandingError", "copies of it are not back")
    return view._replace(held=view.held & ~(1 << channel))


def arrival(view: View, act: str, channel: int, data: object, rules: Rules) -> View | None:
    """An arrival that this domain can take: the view after it; None where it must be refused (rule 6)."""
    if act in ("MOVE_RECEIVED", "BUFFER_RECEIVED"):
        return view._replace(owned=True, via=channel, data=data) if view.state == INVALID else None
    assert act == "COPY_RECEIVED"
    cycle = view.out and COPY_WITH_COPIES_OUT_ACCEPTED not in rules.mistakes
    if view.owned or cycle or (view.held and not rules.shared):
        return None
    return view._replace(held=view.held | 1 << channel, data=data)


def answer(view: View, act: str, channel: int) -> View | None:
    """The end of what this domain sent: a copy is back or was refused, a move was. None: it was never sent so."""
    if act in ("COPY_RELEASED", "COPY_REFUSED"):
        return view._replace(out=view.out & ~(1 << channel)) if view.out >> channel & 1 else None
    assert act == "MOVE_REFUSED"
    return view._replace(owned=True) if view.state == INVALID and view.via == channel else None


def reclaimed(view: View) -> View | None:
    """Everybody behind an ended channel let go of what went away over it (rule 16). None: it is not away."""
    return view._replace(owned=True, via=-1, data=None) if view.state == INVALID else None


def dropped(view: View) -> View:
    """This domain lets go, whatever the state."""
    return view._replace(owned=False, out=0, held=0, via=-1)
