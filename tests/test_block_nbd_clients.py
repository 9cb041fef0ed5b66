"""The NBD face with the programs that people use; a program that is not installed skips its tests, by name.

Debian: nbdkit libnbd-bin python3-libnbd qemu-utils fio e2fsprogs fuse2fs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulktransfer import block
from bulktransfer.block.nbd.server import ExportTable, Server
from nbd_tools import Served, make_certificate, serving

SIZE = 64 << 20
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
ENV = {**os.environ, "PATH": f"/usr/bin:{PATH}", "LC_ALL": "C"}  # nbdsh needs Debian's own python3 first

pytestmark = pytest.mark.watchdog(240)


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is not installed")


def run(*command: str, **options: object) -> str:
    """Run a program to its end; what it said."""
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=200, check=False, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[block.Store]:
    if request.param == "memory":
        made = block.open_store(f"memory:{SIZE}")
    else:
        made = block.open_store(f"file:{tmp_path / 'served'}", create_bytes=SIZE)
    with made:
        yield made


@pytest.fixture
def served(store: block.Store, rendezvous_dir: Path) -> Iterator[Served]:
    with serving(rendezvous_dir, store) as running:
        yield running


@pytest.fixture
def uri(served: Served) -> str:
    return f"nbd+unix:///?socket={served.address}"


def image_with_holes(path: Path, size: int = SIZE) -> Path:
    """A sparse file with data at both ends and in odd places between."""
    rng = random.Random(size)
    with open(path, "wb") as file:
        file.truncate(size)
        for at in (0, size // 3 + 1, size // 2, size - 70_001):
            file.seek(at)
            file.write(rng.randbytes(70_001))
    return path


def same(one: Path, other: Path) -> None:
    run("cmp", str(one), str(other))


def test_nbdinfo_sees_what_the_export_can_do(uri: str) -> None:
    need("nbdinfo")
    (export,) = json.loads(run("nbdinfo", "--json", uri))["exports"]
    assert export["export-size"] == SIZE
    for ability in ("flush", "fua", "multi_conn", "trim", "zero", "fast_zero", "df", "cache"):
        assert export[f"can_{ability}"], ability
    assert (export["block_size_minimum"], export["block_size_maximum"]) == (1, 1 << 25)
    assert export["contexts"] == ["base:allocation"]
    listed = json.loads(run("nbdinfo", "--json", "--list", uri))
    assert [one["export-name"] for one in listed["exports"]] == [""]


def test_nbdcopy_brings_an_image_in_and_out_with_its_holes(uri: str, store: block.Store, tmp_path: Path) -> None:
    need("nbdcopy", "nbdinfo")
    store.write(SIZE // 4, b"old" * 100_000)
    image = image_with_holes(tmp_path / "image")
    run("nbdcopy", "--flush", str(image), uri)
    run("nbdcopy", uri, str(tmp_path / "back"))
    same(image, tmp_path / "back")
    runs = json.loads(run("nbdinfo", "--json", "--map", uri))
    assert sum(one["length"] for one in runs if one["type"] == 0) < 1 << 20
    assert (tmp_path / "back").stat().st_blocks * 512 < SIZE // 8


def test_nbdcopy_goes_from_one_server_to_another(uri: str, store: block.Store, tmp_path: Path) -> None:
    need("nbdcopy")
    image = image_with_holes(tmp_path / "image")
    run("nbdcopy", str(image), uri)
    (tmp_path / "b").mkdir()
    with block.FileStore(tmp_path / "other", create_bytes=SIZE) as other, serving(tmp_path / "b", other) as second:
        run("nbdcopy", "--flush", uri, f"nbd+unix:///?socket={second.address}")
        same(image, tmp_path / "other")


def test_qemu_img_converts_compares_and_checks(uri: str, tmp_path: Path) -> None:
    need("qemu-img")
    image = image_with_holes(tmp_path / "image")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, str(tmp_path / "copy.qcow2"))
    run("qemu-img", "check", str(tmp_path / "copy.qcow2"))
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, str(tmp_path / "copy.qcow2"))
    assert (tmp_path / "copy.qcow2").stat().st_size < SIZE // 8
    runs = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", uri))
    assert any(one["zero"] for one in runs)
    assert sum(one["length"] for one in runs) == SIZE
    # a format of qemu's within the export: written, checked, read
    run("qemu-img", "create", "-f", "qcow2", uri, "32M")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", "--target-is-zero", str(small(tmp_path)), uri)
    run("qemu-img", "check", "-f", "qcow2", uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(small(tmp_path)), uri)


def small(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    return path if path.exists() else image_with_holes(path, 32 << 20)


def test_qemu_io_reads_the_patterns_that_it_wrote(uri: str) -> None:
    need("qemu-io")
    said = run(
        "qemu-io", "-f", "raw", uri,
        "-c", "write -P 0x11 0 32M", "-c", "write -f -P 0x22 1048577 4095", "-c", "flush",
        "-c", "aio_write -P 0x33 40M 1M", "-c", "aio_write -P 0x44 41M 1M", "-c", "aio_flush",
        "-c", "write -z 4M 1M", "-c", "write -z -u 6M 1M", "-c", "discard 8M 1M",
        "-c", "read -P 0x11 0 1048577", "-c", "read -P 0x22 1048577 4095", "-c", "read -P 0x33 40M 1M",
        "-c", "read -P 0x44 41M 1M", "-c", "read -P 0 4M 1M", "-c", "read -P 0 6M 1M", "-c", "read -P 0 8M 1M",
    )  # fmt: skip
    assert "failed" not in said
    assert "error" not in said.lower()


NBDSH = """
h.set_strict_mode(0)                                   # let it send what a careful client would not
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(URI)
size = h.get_size()
assert h.get_structured_replies_negotiated()
def refused(number, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errno == number, (error.errno, number)
    else:
        raise AssertionError(call)
refused("EINVAL", h.pread, 1, size)
refused("ENOSPC", h.pwrite, b"x", size)
refused("ENOSPC", h.zero, 2, size - 1)
refused("EINVAL", h.trim, 2, size - 1)
import errno
h.pwrite(b"A" * 8192, 100, nbd.CMD_FLAG_FUA)
assert h.pread(8194, 99) == b"\\0" + b"A" * 8192 + b"\\0"
chunks = []
def chunk(data, offset, status, error):
    chunks.append((bytes(data), offset, status))
h.pread_structured(512, 100, chunk, nbd.CMD_FLAG_DF)
assert chunks == [(b"A" * 512, 100, nbd.READ_DATA)]
extents = []
h.block_status(size, 0, lambda context, offset, entries, error: extents.extend(entries))
assert extents[1::2] == [0, 3] and sum(extents[::2]) == size, extents
h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE)
h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)
h.trim(65536, 0)
h.cache(65536, 0)
h.flush()
others = []
for n in range(4):
    other = nbd.NBD()
    other.connect_uri(URI)
    assert other.can_multi_conn()
    others.append(other)
pending = []
for n in range(256):
    other = others[n % 4]
    pending.append((other, other.aio_pwrite(bytes([n]) * 4096, n * 4096)))
for other, cookie in pending:
    while not other.aio_command_completed(cookie):
        other.poll(-1)
others[0].flush()
for n in range(256):
    assert h.pread(4096, n * 4096) == bytes([n]) * 4096
for other in others:
    other.shutdown()
print("all fine")
"""


def test_nbdsh_gets_the_protocols_errors_and_its_contents(uri: str, tmp_path: Path) -> None:
    need("nbdsh")
    script = tmp_path / "script.py"
    script.write_text(f"URI = {uri!r}\n{NBDSH}")
    assert "all fine" in run("nbdsh", "-n", "-c", "h = nbd.NBD()", "-c", f"exec(open({str(script)!r}).read())")


def test_fio_verifies_what_it_wrote_at_random(uri: str, tmp_path: Path) -> None:
    need("fio")
    if "nbd" not in run("fio", "--enghelp"):
        pytest.skip("fio without its nbd engine is installed")
    common = [
        "fio",
        "--ioengine=nbd",
        f"--uri={uri}",
        "--size=32M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--output-format=json",
    ]
    for name, options in {
        "small": ["--rw=randwrite", "--bs=4k", "--iodepth=32"],
        "mixed": ["--rw=randrw", "--bsrange=512-128k", "--iodepth=16", "--bs_unaligned=1"],
        "trims": ["--rw=randtrimwrite", "--bs=64k", "--iodepth=1", "--fsync=32"],
    }.items():
        said = run(*common, f"--name={name}", *options, cwd=tmp_path)
        (job,) = json.loads(said[said.index("{") :])["jobs"]
        assert job["error"] == 0


def test_nbdkit_serves_on_what_it_reads_here(uri: str, rendezvous_dir: Path, tmp_path: Path) -> None:
    need("nbdkit", "nbdcopy")
    image = image_with_holes(tmp_path / "image")
    run("nbdcopy", str(image), uri)
    run("nbdkit", "-U", "-", "nbd", f"uri={uri}", "--run", f"nbdcopy $uri {tmp_path / 'back'}")
    same(image, tmp_path / "back")


def test_a_client_starts_the_server_with_a_socket_to_inherit() -> None:
    need("nbdinfo")
    bulk = str(Path(sys.executable).with_name("bulk"))
    said = run("nbdinfo", "--size", "--", "[", bulk, "block", "nbd", "--store", "memory:3M", "]")
    assert int(said) == 3 << 20


def test_tcp_and_tls_serve_the_same(store: block.Store, tmp_path: Path) -> None:
    need("nbdcopy", "openssl")
    import ssl

    certificates = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "ca-cert.pem", certificates / "server-key.pem")
    image = image_with_holes(tmp_path / "image")
    for scheme, tls, query in (("nbd", None, ""), ("nbds", context, f"?tls-certificates={certificates}")):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            server = Server(ExportTable({None: store}), tls=tls)
            thread = threading.Thread(target=server.serve, args=([listener],))
            thread.start()
            try:
                where = f"{scheme}://localhost:{port}/any{query}"
                run("nbdcopy", str(image), where)
                run("nbdcopy", where, str(tmp_path / f"back-{scheme}"))
            finally:
                server.stop()
                thread.join()
        same(image, tmp_path / f"back-{scheme}")


@contextlib.contextmanager
def mounted(uri: str, where: Path) -> Iterator[Path]:
    """The export as a file, by nbdfuse."""
    need("nbdfuse", "fusermount3" if shutil.which("fusermount3") else "fusermount")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/fuse to use")
    where.mkdir()
    ready = where.with_suffix(".pid")
    process = subprocess.Popen(["nbdfuse", "-P", str(ready), f"{where}/disk", uri], env=ENV)
    try:
        turn = threading.Event()
        while not ready.exists():
            assert process.poll() is None, "nbdfuse ended"
            turn.wait(0.05)
        yield where / "disk"
    finally:
        subprocess.run(["fusermount3" if shutil.which("fusermount3") else "fusermount", "-u", str(where)], check=False)
        process.wait(30)


def test_a_file_system_lives_on_it_through_nbdfuse(uri: str, tmp_path: Path) -> None:
    need("nbdfuse", "mkfs.ext4", "debugfs", "e2fsck")
    source = tmp_path / "source"
    source.mkdir()
    rng = random.Random(4)
    for number in range(200):
        (source / f"file{number}").write_bytes(rng.randbytes(rng.randrange(40_000)))
    commands = tmp_path / "commands"
    commands.write_text("".join(f"write {source / f'file{n}'} file{n}\n" for n in range(200)))
    out = tmp_path / "out"
    out.mkdir()
    with mounted(uri, tmp_path / "mnt") as disk:
        run("mkfs.ext4", "-q", "-F", str(disk))
        run("debugfs", "-w", "-f", str(commands), str(disk))
        run("e2fsck", "-f", "-n", str(disk))
    with mounted(uri, tmp_path / "again") as disk:
        run("debugfs", "-R", f"rdump / {out}", str(disk))
        run("e2fsck", "-f", "-n", str(disk))
    for number in range(200):
        assert (out / f"file{number}").read_bytes() == (source / f"file{number}").read_bytes()
