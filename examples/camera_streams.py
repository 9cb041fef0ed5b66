"""A camera and two viewers with streams: no pools, no buffers, no copies. One viewer is slow, and sees the newest.

The camera makes each picture in the memory where the viewers see it. It never waits: a picture that the slow viewer has
not taken when all slots are in use is dropped, the oldest first.
"""

import multiprocessing

import numpy as np

import bulktransfer as bulk

PICTURE = ("u1", (480, 640, 3))
LAST = 49


def viewer(address: str, name: str, cost: int) -> None:
    with bulk.reader(address) as pictures:
        number = -1
        for picture in pictures:
            number = int(picture[0, 0, 0])
            for _ in range(cost):
                np.sort(picture, axis=None)  # it thinks about what it sees
        print(f"{name}: the last picture was {number}")


def main() -> None:
    with bulk.writer("shm:", like=PICTURE, slots=6, slow="drop oldest") as camera:
        processes = [
            multiprocessing.get_context("spawn").Process(target=viewer, args=(camera.address, name, cost))
            for name, cost in (("quick", 0), ("slow", 1))
        ]
        for process in processes:
            process.start()
        camera.wait_for_readers(2, timeout=30)
        for number in range(LAST + 1):
            slot = camera.next()
            slot.array[:] = number  # the exposure
            slot.send()
    for process in processes:
        process.join()
    print("camera: sent", camera.sent)


if __name__ == "__main__":
    main()
