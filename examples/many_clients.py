"""A server with many clients: each client that connects gets two channels of its own, made on the fly.

The listener says once what every client is offered; a client binds all of it, or nothing. Clients come and go while
the server serves others, and bring their own pools, so that no client sees another's buffers.
"""

import contextlib
import multiprocessing
import selectors

import bulktransfer as bulk

TX, RX, FULL = bulk.Direction.TX, bulk.Direction.RX, bulk.Trust.FULL
CLIENTS = 3


def client(address: str, name: str) -> None:
    requests, responses = bulk.connect(address)
    with requests, responses, bulk.Allocator(count=1, size=4096) as buffers:
        requests.assign_pool(buffers.pool)
        responses.assign_pool(buffers.pool)
        buffer = buffers.alloc()
        buffer.put(name.encode())
        requests.move(buffer)
        print("client:", responses.receive_buffer(timeout=5).buffer.tobytes().decode())


class Server:
    def __init__(self) -> None:
        callbacks = bulk.Callbacks(move_received=self.on_request, teardown_received=self.on_end)
        offer = [  # as the server sees it: requests come in, responses go out
            bulk.ChannelSpec(direction=RX, trust=FULL, callbacks=callbacks),
            bulk.ChannelSpec(direction=TX, trust=FULL),
        ]
        self.listener = bulk.listen("shm:", offer)
        self.gone = 0

    def on_request(self, event: bulk.Event) -> None:
        event.buffer.put(b"hello, " + event.buffer.tobytes())
        event.channel.user_state.move(event.buffer)

    def on_end(self, event: bulk.Event) -> None:
        event.channel.user_state.close()
        event.channel.close()
        self.gone += 1

    def serve(self, clients: int) -> None:
        with self.listener, bulk.WaitSet() as everybody, selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            selector.register(everybody, selectors.EVENT_READ)
            keep = []  # a wait set does not keep channels alive
            while self.gone < clients:
                selector.select(timeout=10)
                with contextlib.suppress(TimeoutError):
                    requests, requests.user_state = self.listener.accept(timeout=0)
                    everybody.add(requests)
                    everybody.add(requests.user_state)
                    keep.append(requests)
                everybody.dispatch_nowait()


def main() -> None:
    server = Server()
    spawn = multiprocessing.get_context("spawn")
    clients = [spawn.Process(target=client, args=(server.listener.address, f"number {n}")) for n in range(CLIENTS)]
    for process in clients:
        process.start()
    server.serve(CLIENTS)
    for process in clients:
        process.join()
    print("server: served", CLIENTS, "clients")


if __name__ == "__main__":
    main()
