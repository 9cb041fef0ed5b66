"""Two workers prepare batches for a training loop: as with multiprocessing.Queue, but the arrays are not copied over.

A batch is a dictionary with two arrays. They lie in memory of the worker that made them; the loop reads them there, and
the worker may use the memory again as soon as the loop has dropped the batch.
"""

import multiprocessing
from typing import Any

import numpy as np

import bulktransfer as bulk

WORKERS, BATCHES, IMAGES = 2, 12, 64


def load(jobs: Any, batches: Any) -> None:
    while (number := jobs.get()) is not None:
        images = np.full((IMAGES, 64, 64, 3), number, np.uint8)  # a real one would decode files here
        batches.put({"number": number, "images": images, "labels": np.arange(IMAGES) % 10})


def main() -> None:
    jobs = bulk.Queue()
    batches = bulk.Queue(maxsize=4)  # so that the workers are at most four batches ahead
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=load, args=(jobs, batches), daemon=True) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for number in range(BATCHES):
        jobs.put(number)
    for _ in workers:
        jobs.put(None)

    total = 0
    for _ in range(BATCHES):
        batch = batches.get()
        assert batch["images"].shape == (IMAGES, 64, 64, 3)
        total += int(batch["images"].mean())
    print(f"{BATCHES} batches, the sum of their means is {total}")
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
