"""A camera hands its frames to a NumPy consumer in another process. No frame is copied or pickled on the way.

The consumer's arrays lie in the camera's own memory. When the last array on a frame is gone, the frame goes back,
and the camera's allocator takes it for the next picture.
"""

import multiprocessing

import numpy as np

import bulktransfer as bulk

SHAPE = (480, 640, 3)
FRAME_BYTES = 480 * 640 * 3


def consumer(endpoint: bulk.Endpoint) -> None:
    with endpoint.bind() as camera:
        try:
            while True:
                arrival = camera.receive_buffer()
                with arrival as frame:
                    image = np.frombuffer(frame, np.uint8).reshape(SHAPE)
                    print(arrival.meta.decode(), "has a mean of", image.mean())
        except bulk.EndOfChannelError:
            print("the camera is off")


def main() -> None:
    camera, endpoint = bulk.pair(direction=bulk.Direction.TX, trust=bulk.Trust.FULL, meta_size=32)
    with camera, bulk.Allocator(count=4, size=FRAME_BYTES, reclaim=True) as frames:
        process = multiprocessing.get_context("spawn").Process(target=consumer, args=(endpoint,))
        process.start()
        camera.wait_bound()
        camera.assign_pool(frames.pool)
        for number in range(10):
            frame = frames.alloc(timeout=5)  # waits until one has come back
            frame.length = FRAME_BYTES
            image = np.frombuffer(frame, np.uint8).reshape(SHAPE)
            image[:] = 10 * number  # the exposure
            del image  # a frame with a live view does not leave
            camera.move(frame, meta=f"frame {number}".encode())
        camera.destroy()
        process.join()


if __name__ == "__main__":
    main()
