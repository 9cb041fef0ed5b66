"""A file goes from one machine to another; who does not know the secret is not let in.

Both ends run here, over the loopback interface. Between two machines the address is `tls://HOST:PORT`, and the options
of the network name a certificate. The file is read straight into buffers that leave from where they lie, and what
arrives is written to disk from where it lies.
"""

import hashlib
import multiprocessing
import os
import tempfile
from pathlib import Path

import bulktransfer as bulk

SECRET = os.urandom(32)
SIZE = 1 << 20


def receive(address: str, secret: bytes, target: Path) -> None:
    digest = hashlib.sha256()
    network = bulk.Network(secret=secret)
    with bulk.bind(address, network=network, timeout=30) as channel, target.open("wb") as file:
        for arrival in channel.buffers():
            with arrival as buffer, memoryview(buffer) as data:
                file.write(data)
                digest.update(data)
    print(f"received {target.stat().st_size} bytes, sha256 {digest.hexdigest()[:16]}")


def send(channel: bulk.Channel, source: Path) -> None:
    with bulk.Allocator(count=4, size=SIZE, reclaim=True) as pool, source.open("rb", buffering=0) as file:
        channel.assign_pool(pool.pool)
        while True:
            buffer = pool.alloc(timeout=30)
            with memoryview(buffer) as room:
                count = file.readinto(room)
            if not count:
                break
            buffer.length = count
            channel.move(buffer)
        channel.destroy(timeout=30)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "source"), Path(directory, "target")
        source.write_bytes(b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(1 << 17)))
        network = bulk.Network(secret=SECRET)
        with bulk.create(
            "tcp://127.0.0.1:0", direction=bulk.Direction.TX, trust=bulk.Trust.NONE, network=network
        ) as channel:
            process = multiprocessing.get_context("spawn").Process(
                target=receive, args=(channel.address, SECRET, target)
            )
            process.start()
            channel.wait_bound(timeout=30)
            send(channel, source)
            process.join()
        print(f"sent     {source.stat().st_size} bytes, sha256 {hashlib.sha256(source.read_bytes()).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
