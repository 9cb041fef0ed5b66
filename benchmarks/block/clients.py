"""Every client of the block service's NBD face, with checksums, at full size; prints a table.

    python benchmarks/block/clients.py                         4 GiB, 10,000 files, memory and file stores
    python benchmarks/block/clients.py --size 256M --files 500 --ways file client

Exit status: 0 all well, 1 something was wrong, 2 no program to check with.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from serving import ENV, chain, have, nbd, run

from bulktransfer.block.memory_store import parse_size

HERE = Path(__file__).parent
MIB = 1 << 20


class Wrong(Exception):
    """A client did not get what it should."""


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image_with_holes(path: Path, size: int) -> Path:
    """A sparse file: a MiB of data in every eight, at odd places, and both ends."""
    rng = random.Random(size)
    with open(path, "wb") as file:
        file.truncate(size)
        for at in [0, *(at + rng.randrange(MIB) for at in range(8 * MIB, size - 2 * MIB, 8 * MIB)), size - MIB]:
            file.seek(at)
            file.write(rng.randbytes(MIB))
    return path


def expect(holds: object, what: str) -> None:
    if not holds:
        raise Wrong(what)


class Bench:
    """One served export, and what is checked on it."""

    def __init__(self, uri: str, directory: Path, image: Path, files: int) -> None:
        self.uri = uri
        self.directory = directory
        self.image = image
        self.size = image.stat().st_size
        self.files = files

    def nbdcopy(self) -> str:
        """In, out, and the holes are where they were."""
        back = self.directory / "back"
        run("nbdcopy", "--flush", self.image, self.uri)
        run("nbdcopy", self.uri, back)
        found = digest(back)
        taken = back.stat().st_blocks * 512
        back.unlink()
        expect(found == digest(self.image), "what came back is something else")
        expect(taken < self.size // 4, f"the holes were filled: {taken} bytes")
        return f"sha256 {found[:12]} in = out, {taken // MIB} MiB of {self.size // MIB} are data"

    def qemu_img(self) -> str:
        """convert, compare, check."""
        copy = self.directory / "copy.qcow2"
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", self.image, self.uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", self.image, self.uri)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.uri, copy)
        said = run("qemu-img", "check", copy)
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", self.uri, copy)
        copy.unlink()
        return said.splitlines()[0]

    def qemu_io(self) -> str:
        """Patterns, as written."""
        half = self.size // 2
        said = run(
            "qemu-io", "-f", "raw", self.uri, "-c", f"write -P 0x11 {half} 32M", "-c", "write -f -P 0x22 1048577 4095",
            "-c", f"write -z {half + 4 * MIB} 1M", "-c", f"discard {half + 8 * MIB} 1M", "-c", "flush",
            "-c", f"read -P 0x11 {half} 4M", "-c", "read -P 0x22 1048577 4095", "-c", f"read -P 0 {half + 4 * MIB} 1M",
            "-c", f"read -P 0 {half + 8 * MIB} 1M", "-c", f"read -P 0x11 {half + 9 * MIB} 23M",
        )  # fmt: skip
        expect("failed" not in said and "error" not in said.lower(), said)
        return "patterns, zeroes and discards read back"

    def fio(self) -> str:
        """Random writes, checked."""
        env = {"URI": self.uri, "SIZE": str(min(self.size, 1 << 30))}
        with tempfile.TemporaryDirectory(dir=self.directory) as state:
            said = subprocess.run(
                ["fio", "--output-format=json", HERE / "fio-verify.fio"],
                env={**ENV, **env}, cwd=state, capture_output=True, text=True, check=False,
            )  # fmt: skip
        expect(said.returncode == 0, said.stdout + said.stderr)
        jobs = json.loads(said.stdout[said.stdout.index("{") :])["jobs"]
        expect(all(job["error"] == 0 for job in jobs), "a block was wrong")
        return "crc32c of " + ", ".join(f"{job['write']['io_bytes'] // MIB} MiB {job['jobname']}" for job in jobs)

    def vanishing(self) -> str:
        """A client that leaves in the middle of a reply harms nobody."""
        path = self.uri.partition("socket=")[2]
        before = run("nbdinfo", "--size", self.uri)
        for length in (0, 10, 1000, MIB):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                client.recv(18, socket.MSG_WAITALL)
                client.sendall(b"\0\0\0\3" + b"IHAVEOPT\0\0\0\1\0\0\0\0")
                client.recv(10, socket.MSG_WAITALL)
                client.sendall(bytes.fromhex("25609513 0000 0000 0000000000000001 0000000000000000 02000000") * 4)
                if length:
                    client.recv(length, socket.MSG_WAITALL)
        expect(run("nbdinfo", "--size", self.uri) == before, "the server is not there any more")
        return "four clients left within 4 x 32 MiB of replies; the server goes on"

    def ext4(self) -> str:
        """A file system with many files, through nbdfuse; fsck finds nothing, and all files are as they were."""
        source, out = self.directory / "source", self.directory / "out"
        source.mkdir(exist_ok=True)
        out.mkdir()
        rng = random.Random(4)
        lines = []
        for number in range(self.files):
            if number % 500 == 0:
                lines += ["cd /", f"mkdir d{number // 500}", f"cd d{number // 500}"]
            (source / f"f{number}").write_bytes(rng.randbytes(rng.randrange(16_000)))
            lines.append(f"write {source / f'f{number}'} f{number}")
        script = self.directory / "script"
        script.write_text("\n".join(lines))
        with self.mounted() as disk:
            run("mkfs.ext4", "-q", "-F", "-N", str(2 * self.files + 1000), disk)
            run("debugfs", "-w", "-f", script, disk)
            run("e2fsck", "-f", "-n", disk)
        with self.mounted() as disk:
            run("debugfs", "-R", f"rdump / {out}", disk)
            said = run("e2fsck", "-f", "-n", disk)
        wrong = [
            number
            for number in range(self.files)
            if (out / f"d{number // 500}" / f"f{number}").read_bytes() != (source / f"f{number}").read_bytes()
        ]
        run("rm", "-rf", out, source)
        expect(not wrong, f"{len(wrong)} files differ, the first is f{wrong[:1]}")
        return f"{self.files} files as they were; fsck: {said.splitlines()[-1].partition(': ')[2]}"

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """The export as a file."""
        where = self.directory / "mnt"
        ready = self.directory / "ready"
        where.mkdir(exist_ok=True)
        ready.unlink(missing_ok=True)
        with subprocess.Popen(["nbdfuse", "-P", ready, where / "disk", self.uri], env=ENV) as fuse:
            while not ready.exists():
                if fuse.poll() is not None:
                    raise Wrong("nbdfuse ended")
                time.sleep(0.02)
            try:
                yield where / "disk"
            finally:
                run("fusermount3" if have("fusermount3") else "fusermount", "-u", where)


CHECKS: list[tuple[str, tuple[str, ...], Callable[[Bench], str]]] = [
    ("nbdcopy in and out", ("nbdcopy",), Bench.nbdcopy),
    ("qemu-img convert, compare, check", ("qemu-img",), Bench.qemu_img),
    ("qemu-io", ("qemu-io",), Bench.qemu_io),
    ("fio --verify=crc32c", ("fio",), Bench.fio),
    ("a client that vanishes", ("nbdinfo",), Bench.vanishing),
    ("ext4 through nbdfuse", ("nbdfuse", "mkfs.ext4", "debugfs", "e2fsck"), Bench.ext4),
]


@contextlib.contextmanager
def served(way: str, directory: Path, size: int) -> Iterator[str]:
    """The export of one way. Raises: RuntimeError."""
    if way == "memory":
        with nbd(directory, f"memory:{size}") as uri:
            yield uri
        return
    disk = directory / "disk.img"
    with open(disk, "wb") as file:
        file.truncate(size)
    try:
        with (nbd if way == "file" else chain)(directory, f"file:{disk}") as uri:
            yield uri
    finally:
        disk.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="4G")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--ways", nargs="+", choices=["memory", "file", "client"], default=["memory", "file"])
    parser.add_argument("--only", help="checks whose name has this in it")
    parser.add_argument("--directory", help="for images; default: a temporary one")
    args = parser.parse_args()
    failed = done = 0
    with tempfile.TemporaryDirectory(dir=args.directory, prefix="blk-") as name:
        directory = Path(name)
        image = image_with_holes(directory / "image", parse_size(args.size))
        for way in args.ways:
            with served(way, directory, image.stat().st_size) as uri:
                for what, programs, check in CHECKS:
                    if args.only and args.only not in what:
                        continue
                    begin = time.monotonic()
                    if not have(*programs):
                        print(f"{way:8}{what:36}skipped: needs {' '.join(programs)}", flush=True)
                        continue
                    done += 1
                    try:
                        said = "ok     " + check(Bench(uri, directory, image, args.files))
                    except (Wrong, RuntimeError, OSError) as error:
                        failed += 1
                        said = f"WRONG  {error}"
                    print(f"{way:8}{what:36}{time.monotonic() - begin:7.1f} s  {said}", flush=True)
    if not done:
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
