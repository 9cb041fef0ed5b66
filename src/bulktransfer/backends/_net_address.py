"""Addresses on a network: `tcp://HOST:PORT` and `tls://HOST:PORT`, with options behind a question mark.

Knows: how they are written, and which of them leave the machine. Must not know: connections.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import pathlib
import socket
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from ..core.network import Network

LOOPBACK: Final = "127.0.0.1"
_FILES: Final = {"certificate": "certificate", "key": "key", "authority": "authority"}
_OPTIONS: Final = (
    "certificate",
    "key",
    "authority",
    "server_name",
    "secret",
    "insecure",
    "timeout",
    "congestion",
    "retry",
)


class Where(NamedTuple):
    """One address of the kernel's."""

    family: int
    sockaddr: Any

    @property
    def text(self) -> str:
        """Host and port, as in an address."""
        return host_and_port(self.sockaddr[0], self.sockaddr[1])


class Place(NamedTuple):
    """What an address says."""

    scheme: str
    host: str
    port: int
    network: Network

    def __str__(self) -> str:
        return f"{self.scheme}://{host_and_port(self.host, self.port)}"

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken there."""
        return self.scheme == "tls"

    def resolve(self) -> list[Where]:
        """Its addresses of the kernel's. Raises: OSError (no such name), PermissionError (it leaves the machine)."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise OSError(f"{self}: {error.strerror}") from None
        places = [Where(family, sockaddr) for family, _, _, _, sockaddr in found]
        outside = [place for place in places if not is_loopback(place.sockaddr[0])]
        if outside and not self.secure and not self.network.insecure:
            raise PermissionError(
                f"{self}: {outside[0].text} is beyond this machine, and everybody on the way could read and change"
                " what is sent: use tls:, or say bulk.Network(insecure=True)"
            )
        return sorted(places, key=lambda place: place.family != socket.AF_INET)


def host_and_port(host: str, port: int) -> str:
    """Both as they stand in an address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether an address of the kernel's stays on this machine."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def place_of(act: str, scheme: str, address: str, network: Network | None, *, choose: bool = False) -> Place:
    """What `address` says; `choose` allows `tcp:` and port 0, for which the system chooses.

    Raises: TypeError, ValueError, OSError (the file with a secret).
    """
    if not isinstance(address, str):
        raise TypeError(f"{act}: an address is a str, not a {type(address).__name__}")
    what = f"{act} {address.partition('?')[0]!r}"
    if address == f"{scheme}:" and choose:
        return Place(scheme, LOOPBACK, 0, network or Network())
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    if parts.scheme != scheme or parts.path not in ("", "/") or parts.fragment or parts.username is not None:
        raise ValueError(f"{what}: it is not {scheme}://HOST:PORT")
    if port is None or (port == 0 and not choose):
        raise ValueError(f"{what}: the port is missing")
    return Place(scheme, host or LOOPBACK, port, _merged(what, parts.query, network))


def _merged(what: str, query: str, network: Network | None) -> Network:
    """The options of an address and those beside it. Raises: ValueError (both say something of one), OSError."""
    said: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
        if name not in _OPTIONS:
            raise ValueError(f"{what}: it has no option {name!r}; there are {', '.join(_OPTIONS)}")
        if name in said:
            raise ValueError(f"{what}: {name} is said twice")
        said[name] = value
    for name in ("insecure", "retry"):
        if name in said:
            if said[name] not in ("0", "1"):
                raise ValueError(f"{what}: {name} is {said[name]!r}, neither 0 nor 1")
            said[name] = said[name] == "1"
    if "timeout" in said:
        said["timeout_s"] = float(said.pop("timeout"))
    if "secret" in said:  # the name of a file: what is in an address is seen by others
        said["secret"] = pathlib.Path(said["secret"]).read_bytes()
    if network is None:
        return Network(**said)
    plain = Network()
    for name in said:
        if getattr(network, name) != getattr(plain, name):
            raise ValueError(f"{what}: {name} is in the address and in network=, too")
    return dataclasses.replace(network, **said)
