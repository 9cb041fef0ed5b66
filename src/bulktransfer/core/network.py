"""What a user says about connections between machines.

Knows: the options, and which of them make sense together. Must not know: sockets.
"""

from __future__ import annotations

import dataclasses
import os
import ssl

from ..abc import Backend

SECRET_SIZE_MIN = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How channels between machines are protected and kept alive; for `tcp:` and `tls:` addresses.

    certificate, key: files (PEM) with this side's certificate chain and its key; a creator at `tls:` needs one, a
    binder shows it if the creator asks · authority: a file (PEM) of those whose word about the peer counts; a creator
    that names one lets in only binders with a certificate of theirs; a binder without one asks the system's ·
    server_name: the name that the creator's certificate must have; else the host of the address ·
    tls: an ssl.SSLContext instead of all these · secret: at least 16 random bytes that both sides have, proved when
    they meet (it keeps strangers out; without TLS it keeps nobody from listening) · insecure: beyond loopback without
    TLS · timeout_s: after which a peer that does not answer on the network is dead · congestion: the name of TCP's
    congestion control; by default the system's, and cubic on loopback, where it is there · retry: a bind goes on
    trying, within its timeout, where it is refused on the way, too (no route, a hang-up), with ever longer pauses.
    Raises: TypeError, ValueError.
    """

    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    authority: str | os.PathLike[str] | None = None
    server_name: str | None = None
    tls: ssl.SSLContext | None = None
    secret: bytes | None = dataclasses.field(default=None, repr=False)
    insecure: bool = False
    timeout_s: float = 20.0
    congestion: str | None = None
    retry: bool = False

    def __post_init__(self) -> None:
        if self.tls is not None and not isinstance(self.tls, ssl.SSLContext):
            raise TypeError(f"Network.tls is {self.tls!r}; it takes an ssl.SSLContext")
        if self.tls is not None and (self.certificate or self.key or self.authority):
            raise ValueError("Network: an SSLContext has its certificates already; give tls or the files")
        if self.key is not None and self.certificate is None:
            raise ValueError("Network: a key without a certificate")
        if self.secret is not None and not isinstance(self.secret, bytes):
            raise TypeError(f"Network.secret is a {type(self.secret).__name__}; it takes bytes")
        if self.secret is not None and len(self.secret) < SECRET_SIZE_MIN:
            raise ValueError(f"Network.secret has {len(self.secret)} bytes; at least {SECRET_SIZE_MIN} random ones do")
        if isinstance(self.timeout_s, bool) or not isinstance(self.timeout_s, int | float) or not self.timeout_s > 0:
            raise ValueError(f"Network.timeout_s is {self.timeout_s!r}; it takes a positive number")


def options_for(backend: Backend, address: str, network: Network | None) -> dict[str, Network]:
    """What to hand to a backend beside the rest. Raises: TypeError, ValueError (it takes no such options)."""
    if network is None:
        return {}
    if not isinstance(network, Network):
        raise TypeError(f"network={network!r}; it takes bulk.Network")
    if not getattr(backend, "takes_network", False):
        raise ValueError(f"address {address!r}: {backend.scheme}: goes over no network, and takes no network=")
    return {"network": network}
