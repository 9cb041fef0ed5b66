"""What a channel says of itself to others of its user (`bulk ls`): its record in the statistics of this process.

Knows: which facts. Must not know: where they are kept, or who looks.
"""

from __future__ import annotations

import json
from typing import Any

_ADDRESS_CHARACTERS = 200  # a record has room for 936 bytes
_POOLS = 32


def show(channel: Any) -> None:
    """What it is now is what others see from here on."""
    pools = [a.pool.name for a in channel.table if a is not None]
    facts = {
        "kind": "channel",
        "number": channel.number,
        "address": channel.address.encode("ascii", "replace").decode()[:_ADDRESS_CHARACTERS],
        "state": channel.state.name,
        "end": "source" if channel.is_source else "sink",
        "role": channel.role.name,
        "trust": channel.trust.name,
        "peer": channel.peer.pid,
        "host": channel.peer.host[:_ADDRESS_CHARACTERS],
        "pools": pools[:_POOLS],
        "more_pools": len(pools[_POOLS:]),
    }
    channel.show(json.dumps(facts).encode())
