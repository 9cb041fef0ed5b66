"""Two machines for tests: network namespaces with a cable between them.

def test_something(machines, spawn):      # skipped where the kernel or the user may not make them
    machines.command(0, "forward", ...)   # `bulk forward ...` on the first
    machines.cut()                        # the cable is pulled
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOSTS = ("10.99.0.1", "10.99.0.2")
_CLONE_NEWNET = 0x40000000


def enter(name: str) -> None:
    """From here on the sockets of this thread are on that machine."""
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {name}")
    finally:
        os.close(fd)


class Command(subprocess.Popen[str]):
    """A process that is over when its block is."""

    def __exit__(self, *exc: object) -> None:
        self.kill()
        super().__exit__(*exc)


def command(*arguments: str, prefix: tuple[str, ...] = (), cwd: Path | None = None) -> Command:
    """`bulk ...` in a process of its own, which ends with this one."""
    setpriv = (shutil.which("setpriv") or "setpriv", "--pdeathsig", "KILL", "--")
    return Command(
        [*prefix, *setpriv, sys.executable, "-m", "bulktransfer.cli.main", *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Machines:
    """Their names, and the cable between them; each has the address of HOSTS with its number."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.env = {"PYTHONPATH": str(Path(__file__).parent)}  # for a child that imports this module

    def command(self, number: int, *arguments: str, cwd: Path | None = None) -> Command:
        """`bulk ...` on one of them."""
        return command(*arguments, prefix=("ip", "netns", "exec", self.names[number]), cwd=cwd)

    def cut(self) -> None:
        """Pull the cable."""
        ip("-n", self.names[0], "link", "set", "bulk0", "down")


def ip(*arguments: str) -> None:
    """The program of that name."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def machines():
    """Two of them, gone afterwards."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces take the ip program and root")
    names = [f"bulk{os.getpid()}{side}" for side in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "bulk0", "netns", names[0], "type", "veth", "peer", "name", "bulk1", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"{HOSTS[number]}/24", "dev", f"bulk{number}")
            ip("-n", name, "link", "set", f"bulk{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield Machines(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
