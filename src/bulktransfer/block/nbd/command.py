"""`bulk block nbd`: serves a store to every program that speaks NBD.

Knows: arguments, signals, the exit status. Must not know: the protocol, or what stores do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import bulktransfer as bulk

from .. import listening, opening
from ..errors import BadRequestError
from ..service.device import BlockDevice
from ..service.remote_store import RemoteStore
from ..store import Store
from .negotiation import Tls
from .server import ExportTable, Server

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, FAILED, CANNOT = 0, 1, 2

_EPILOG = """\
examples:
  bulk block nbd --store memory:1G --unix /tmp/disk.sock
  nbdcopy nbd+unix:///?socket=/tmp/disk.sock image.raw
  bulk block nbd --store file:image.raw --tcp 127.0.0.1:10809
  nbdinfo [ bulk block nbd --store file:image.raw ]       (a socket that it inherits: LISTEN_FDS)
SIGTERM and SIGINT end it in order: what was asked is answered, the store is flushed.
exit status: 0 ended in order, 1 the last flush failed, 2 it could not start
"""


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "nbd",
        help="serve a store over NBD, for nbdcopy, qemu, fio, nbdfuse and the like",
        description="Serve a store over the NBD protocol.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--store", metavar="NAME", help="memory:SIZE or file:PATH")
    what.add_argument("--connect", metavar="ADDRESS", help="what a block service serves there (bulk block serve)")
    parser.add_argument("--connect-export", metavar="NAME", default="", help="which of its exports")
    parser.add_argument("--unix", metavar="PATH", help="listen on a UNIX socket")
    parser.add_argument("--tcp", metavar="HOST:PORT", help="listen on TCP; port 0 chooses a free one")
    parser.add_argument("--export", metavar="NAME", help="serve this name only (default: every name)")
    parser.add_argument("--description", default="", help="what clients are told of the export")
    parser.add_argument("--once", action="store_true", help="end when the last client has gone")
    parser.add_argument("--insecure", action="store_true", help="allow TCP beyond this machine without TLS")
    parser.add_argument("--tls-certificate", metavar="FILE", help="require TLS: the certificate and its chain, PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its key, PEM")
    parser.add_argument("--tls-verify", metavar="FILE", help="ask clients for a certificate that one of these signed")
    parser.add_argument("--tls-optional", action="store_true", help="serve clients without TLS, too")
    opening.add_arguments(parser)


def store_of(args: argparse.Namespace) -> Store:
    """The store that the arguments name. Raises: OSError, ValueError, BulkError."""
    if args.connect is None:
        return opening.from_arguments(args.store, args)
    if args.direct or args.create:
        raise BadRequestError("--direct and --create go with --store")
    return RemoteStore(BlockDevice(args.connect, export=args.connect_export))


def tls_of(args: argparse.Namespace) -> tuple[ssl.SSLContext | None, Tls]:
    """TLS as the arguments say. Raises: ValueError, OSError, ssl.SSLError."""
    if args.tls_certificate is None:
        if args.tls_key or args.tls_verify or args.tls_optional:
            raise ValueError("TLS needs --tls-certificate")
        return None, Tls.OFF
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(args.tls_certificate, args.tls_key)
    if args.tls_verify:
        context.load_verify_locations(args.tls_verify)
        context.verify_mode = ssl.CERT_REQUIRED
    return context, Tls.OPTIONAL if args.tls_optional else Tls.REQUIRED


@contextlib.contextmanager
def listeners(args: argparse.Namespace) -> Iterator[tuple[int, list[socket.socket]]]:
    """How many sockets were inherited; those, and the ones that the arguments name. Raises: OSError, ValueError."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(sock) for sock in listening.inherited_listeners()]
        inherited = len(found)
        if args.unix is not None:
            found.append(stack.enter_context(listening.unix_listener(args.unix)))
            stack.callback(listening.remove_unix, args.unix, os.stat(args.unix).st_ino)
        if args.tcp is not None:
            host, port = listening.split_host_port(args.tcp)
            if (
                not listening.is_loopback(host)
                and not args.insecure
                and (not args.tls_certificate or args.tls_optional)
            ):
                raise ValueError(f"{host} can be reached by other machines: require TLS, or say --insecure")
            found.append(stack.enter_context(listening.tcp_listener(host, port)))
        if not found:
            raise ValueError("where? say --unix or --tcp, or leave a socket to inherit (LISTEN_FDS)")
        yield inherited, found


def uri(sock: socket.socket, export: str, tls: bool) -> str:
    """How a client says it."""
    scheme = "nbds" if tls else "nbd"
    if sock.family == socket.AF_UNIX:
        return f"{scheme}+unix:///{export}?socket={sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{export}"


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; the exit status, as the help says."""
    try:
        context, mode = tls_of(args)
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(store_of(args))
            inherited, sockets = stack.enter_context(listeners(args))
            server = Server(
                ExportTable({args.export: store}, read_only=args.read_only, description=args.description),
                tls=context,
                tls_mode=mode,
            )

            def stop(number: int, frame: FrameType | None) -> None:
                server.stop()

            for number in (signal.SIGTERM, signal.SIGINT):
                stack.callback(signal.signal, number, signal.signal(number, stop))
            for sock in sockets[inherited:]:  # whoever left a socket knows where it is, and may want the output
                print(f"serving {uri(sock, args.export or '', mode is Tls.REQUIRED)}", flush=True)
            return _serve(server, sockets, args)
    except (OSError, ValueError, bulk.BulkError) as error:
        print(f"bulk block nbd: {error}", file=sys.stderr)
        return CANNOT


def _serve(server: Server, sockets: list[socket.socket], args: argparse.Namespace) -> int:
    try:
        server.serve(sockets, once=args.once)
    except bulk.BulkError as error:
        print(f"bulk block nbd: {error}", file=sys.stderr)
        return FAILED
    return OK
