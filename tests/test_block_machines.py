"""The two machines of Figure 7.1, as docs/how-to/block-devices.md has them: the page's commands in two namespaces."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from certificates import Authority

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "block-devices.md"

pytestmark = pytest.mark.watchdog(180)


def commands(machine: str) -> list[list[str]]:
    """What the page has one run on a machine."""
    block = re.search(rf"<!-- two machines: {machine} -->\n```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None, machine
    return [shlex.split(line) for line in block.group(1).splitlines()]


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them, 10.99.0.1 and 10.99.0.2."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces take ip and root")
    names = f"blocks{os.getpid()}a", f"blocks{os.getpid()}b"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            ip(
                "link",
                "add",
                "blocks0",
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                "blocks1",
                "netns",
                names[1],
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        for side, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.99.0.{side + 1}/24", "dev", f"blocks{side}")
            ip("-n", name, "link", "set", f"blocks{side}", "up")
        yield names


class Machine:
    """Runs the page's commands in one namespace; `bulk` is this environment's."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._directory = directory
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _command(self, command: list[str]) -> list[str]:
        assert command[0] == "bulk"
        dies = ["setpriv", "--pdeathsig", "KILL", "--"]
        return ["ip", "netns", "exec", self._name, *dies, sys.executable, "-u", "-m", "bulktransfer", *command[1:]]

    def run(self, command: list[str]) -> str:
        """One that ends; what it printed."""
        done = subprocess.run(
            self._command(command), cwd=self._directory, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def serve(self, command: list[str]) -> subprocess.Popen[str]:
        """One that stays; it is ready."""
        process = subprocess.Popen(self._command(command), cwd=self._directory, stdout=subprocess.PIPE, text=True)
        self._stack.callback(self._end, process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving")
        return process

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output


def test_the_documented_commands_join_two_machines(machines: tuple[str, str], rendezvous_dir: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl program to make certificates with")
    directory = rendezvous_dir  # short: there is a socket in it
    Authority(directory).papers("store")
    (server,) = commands("server")
    client, bench, nbd = commands("client")
    with Machine(machines[0], directory) as one, Machine(machines[1], directory) as two:
        one.serve(server)
        two.serve(client)
        output = two.run(bench)
        assert "user: write, status" in output
        two.serve(nbd)
        if shutil.which("nbdinfo") is not None:
            said = subprocess.run(
                ["nbdinfo", "--size", f"nbd+unix:///?socket={directory / 'disk.sock'}"],
                capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            assert int(said.stdout) == 64 << 20
    assert (directory / "disk.img").stat().st_blocks * 512 >= 4 << 20  # what the user wrote is in the file
