"""The ends of a channel as they are named on a command line, and what keeps those between machines safe.

Knows: `create:` and `bind:` before an address, the options of bulk.Network, how either makes a channel. Must not know:
what goes over the channel.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import bulktransfer as bulk


class End(NamedTuple):
    """One end as the user named it."""

    created: bool
    address: str

    def __str__(self) -> str:
        return f"{'create' if self.created else 'bind'}:{self.address}"


def end(text: str, created: bool = False) -> End:
    """What FROM, TO or ADDRESS says, `created` where it says neither; for argparse."""
    for prefix in ("create:", "bind:"):
        if text.startswith(prefix):
            return End(prefix == "create:", text.removeprefix(prefix))
    return End(created, text)


def end_to_create(text: str) -> End:
    """The same, for an end that is created where the user does not say; for argparse."""
    return end(text, True)


def add_network(parser: argparse.ArgumentParser) -> None:
    """The options for tcp: and tls: addresses."""
    group = parser.add_argument_group("between machines (tcp:, tls:)")
    group.add_argument("--certificate", metavar="FILE", help="this side's certificate chain (PEM); a creator needs one")
    group.add_argument("--key", metavar="FILE", help="its key (PEM), if it is not in the same file")
    group.add_argument("--authority", metavar="FILE", help="whose word about the other side counts (PEM)")
    group.add_argument("--server-name", metavar="NAME", help="the name in the creator's certificate; else the host")
    group.add_argument("--secret-file", metavar="FILE", help="a file of at least 16 random bytes that both sides have")
    group.add_argument("--insecure", action="store_true", help="beyond loopback without TLS")


def network_of(args: argparse.Namespace) -> bulk.Network | None:
    """What they say; None where they say nothing. Raises: ValueError, OSError (no such secret)."""
    said: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("certificate", "key", "authority", "server_name")
        if getattr(args, name) is not None
    }
    if args.secret_file is not None:
        said["secret"] = Path(args.secret_file).read_bytes()
    if args.insecure:
        said["insecure"] = True
    return bulk.Network(**said) if said else None


def network_for(address: str, network: bulk.Network | None) -> bulk.Network | None:
    """The same, where the backend of an address takes it. Raises: as backend_for."""
    return network if getattr(bulk.backends.backend_for(address), "takes_network", False) else None


def open_end(args: argparse.Namespace, direction: bulk.Direction, meta_size: int) -> bulk.Channel:
    """The channel that --trust, --timeout and the address say; created and not told otherwise it is of trust NONE.

    Raises: BulkError, OSError, ValueError (what is bound does not fit), ImportError.
    """
    named: End = args.address
    network = network_of(args)
    if named.created:
        trust = bulk.Trust.NONE if args.trust is bulk.Trust.UNINITIALIZED else args.trust
        return bulk.create(named.address, direction=direction, trust=trust, meta_size=meta_size, network=network)
    channel = bulk.bind(named.address, trust=args.trust, timeout=args.timeout, network=network)
    if channel.direction is not direction:
        channel.abort("the two ends have the same direction: one sends and one receives")
        raise ValueError(f"{named.address}: the other end has the same direction; one sends and one receives")
    if channel.meta_size < meta_size:
        channel.abort(f"meta data of {meta_size} bytes is needed")
        raise ValueError(f"{named.address}: its meta data is {channel.meta_size} bytes, and {meta_size} are needed")
    return channel
