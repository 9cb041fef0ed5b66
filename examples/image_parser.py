"""A parser of strangers' images runs in a process of its own, at trust NONE: it sees what it is sent, no more.

The parser gets the file's bytes and answers with pixels in a buffer of its own pool. The two share no writable page.
What it sends is copied before it is looked at. When a file kills it, the kernel says so, and the host starts another.
"""

import multiprocessing
import struct

import numpy as np

import bulktransfer as bulk

SIDE = 64


def parse_ppm(data: memoryview) -> bytes:
    """The pixels of a PPM; nobody promises that this parser has no bug."""
    magic, width, height, _, pixels = bytes(data).split(maxsplit=4)
    if magic != b"P6" or len(pixels) != int(width) * int(height) * 3:
        raise SystemExit(3)  # a real one would rather overflow its heap
    return struct.pack("<II", int(width), int(height)) + pixels


def parser(address: str) -> None:
    bulk.harden()
    files, images = bulk.connect(address, trust=bulk.Trust.NONE)
    with files, images, bulk.Allocator(count=2, size=1 << 20, reclaim=True) as answers:
        images.assign_pool(answers.pool)
        for arrival in files.buffers():
            with arrival as file, memoryview(file) as data:
                pixels = parse_ppm(data)
            answer = answers.alloc(timeout=5)
            answer.put(pixels)
            images.move(answer)


def look_at(image: bulk.Buffer) -> str:
    """Nothing that the parser says is believed: its sizes are checked against what came."""
    width, height = struct.unpack_from("<II", image.tobytes())
    if not 0 < width * height * 3 == image.length - 8:
        raise ValueError("the parser lies about the size of its image")
    pixels = np.frombuffer(image, np.uint8, offset=8).reshape(height, width, 3)
    return f"{width} x {height}, mean {pixels.mean():.1f}"


def main() -> None:
    bulk.harden()
    good = b"P6 %d %d 255 " % (SIDE, SIDE) + bytes([80]) * (SIDE * SIDE * 3)
    with bulk.Allocator(count=2, size=1 << 20, reclaim=True) as pool:
        for name, data in (("good.ppm", good), ("evil.ppm", b"P6 9999 9999 255 \0"), ("again.ppm", good)):
            print(f"{name}: {parse_apart(pool, data)}")


def parse_apart(pool: bulk.Allocator, data: bytes) -> str:
    """Have a fresh parser look at one file."""
    specs = [
        bulk.ChannelSpec(direction=bulk.Direction.TX, trust=bulk.Trust.NONE),
        bulk.ChannelSpec(direction=bulk.Direction.RX, trust=bulk.Trust.NONE),
    ]
    with bulk.listen("shm:", specs) as listener:
        process = multiprocessing.get_context("spawn").Process(target=parser, args=(listener.address,))
        process.start()
        files, images = listener.accept(timeout=30)
        with files, images:
            files.assign_pool(pool.pool)
            file = pool.alloc()
            file.put(data)
            try:
                files.move(file)
                with images.receive_buffer(timeout=30) as image:
                    return look_at(image)
            except (bulk.EndOfChannelError, bulk.BrokenChannelError):
                process.join()
                return f"the parser did not survive it (exit code {process.exitcode})"
            finally:
                files.close()
                process.join()


if __name__ == "__main__":
    main()
