"""Requests and responses over two channels: the server works on the very buffer that brought the request.

The client fills a buffer and moves it over one channel; the server owns it then, writes its answer over the question
and moves it back over the other channel.
"""

import multiprocessing

import bulktransfer as bulk

TX, RX, FULL = bulk.Direction.TX, bulk.Direction.RX, bulk.Trust.FULL


def server(requests_end: bulk.Endpoint, responses_end: bulk.Endpoint) -> None:
    with requests_end.bind() as requests, responses_end.bind() as responses:
        try:
            while True:
                buffer = requests.receive_buffer().buffer
                buffer.put(buffer.tobytes().upper())
                responses.move(buffer)
        except bulk.EndOfChannelError:
            print("server: no more requests")


def main() -> None:
    requests, requests_end = bulk.pair(direction=TX, trust=FULL)
    responses, responses_end = bulk.pair(direction=RX, trust=FULL)
    with requests, responses, bulk.Allocator(count=2, size=1 << 20) as buffers:
        process = multiprocessing.get_context("spawn").Process(target=server, args=(requests_end, responses_end))
        process.start()
        for channel in (requests, responses):
            channel.wait_bound()
            channel.assign_pool(buffers.pool)  # one pool, two channels: the buffer may return another way

        for question in (b"how big?", b"how fast?", b"whose is it?"):
            buffer = buffers.alloc()
            buffer.put(question)
            requests.move(buffer)
            answer = responses.receive_buffer(timeout=5).buffer
            print("client:", question.decode(), "->", answer.tobytes().decode())
            buffers.free(answer)  # the same buffer, home again
        requests.destroy()
        process.join()


if __name__ == "__main__":
    main()
