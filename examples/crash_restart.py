"""A worker crashes in the middle of its job; its buffers come back, and a new worker does the job again.

The kernel says that the worker is gone, and that nobody holds the memory any more: only then may it be used again.
"""

import multiprocessing
import os
import signal

import bulktransfer as bulk


def worker(endpoint: bulk.Endpoint) -> None:
    with endpoint.bind() as jobs:
        try:
            while True:
                with jobs.receive_buffer() as buffer:
                    job = buffer.tobytes().decode()
                    print("worker: doing", job, flush=True)
                    if job == "job 1" and "second" not in multiprocessing.current_process().name:
                        os.kill(os.getpid(), signal.SIGKILL)  # as bad as it gets
        except bulk.EndOfChannelError:
            return


def start(frames: bulk.Allocator, name: str) -> bulk.Channel:
    """A channel to a new worker that can use the buffers."""
    jobs, endpoint = bulk.pair(direction=bulk.Direction.TX, trust=bulk.Trust.FULL)
    multiprocessing.get_context("spawn").Process(target=worker, args=(endpoint,), name=name, daemon=True).start()
    jobs.wait_bound()
    jobs.assign_pool(frames.pool)
    return jobs


def main() -> None:
    with bulk.Allocator(count=2, size=4096) as frames:
        jobs = start(frames, "first worker")
        number = 0
        while number < 3:
            frame = frames.alloc()
            frame.put(f"job {number}".encode())
            try:
                jobs.move(frame)
                frames.free(jobs.receive_buffer().buffer)
                number += 1
            except bulk.BrokenChannelError as error:
                print("the worker died;", len(error.buffers), "buffer is back")
                frames.free_many(error.buffers)
                jobs.close()
                jobs = start(frames, "second worker")
        jobs.destroy()
        print("all jobs are done, free buffers:", frames.available)


if __name__ == "__main__":
    main()
