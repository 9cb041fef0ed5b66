"""The asyncio face: what waits is awaited, in one loop, without threads; a cancelled call loses nothing."""

from __future__ import annotations

import asyncio
import threading

import pytest

import bulktransfer as bulk
from bulktransfer import ChannelState, Direction, EventKind, Trust, aio
from bulktransfer.core import gathering
from looping import LOOPS, Meeting, filled, mute, run_in, settle


@pytest.fixture(params=LOOPS)
def loop(request):
    return request.param


@pytest.fixture(params=["local", "shm"])
def meeting(request):
    return Meeting(request.param)


# -- receiving ---------------------------------------------------------------------------------------------------------


def test_a_task_receives_what_a_process_sends_and_gives_it_back(spawn, loop):
    def sender(pipe, address, count):
        import bulktransfer as bulk

        with bulk.bind(address) as channel, bulk.Allocator(count=2, size=4096, reclaim=True) as alloc:
            channel.assign_pool(alloc.pool)
            for number in range(count):
                buffer = alloc.alloc(timeout=20)
                buffer.put(str(number).encode())
                channel.move(buffer)
            alloc.alloc_many(2, timeout=20)  # all are home
            channel.destroy()

    async def main():
        async with aio.create("shm:", direction=Direction.RX, trust=Trust.FULL) as channel:
            child = spawn(sender, channel.address, 50)
            await channel.wait_bound()
            found = []
            async for transfer in channel.buffers():
                with transfer as buffer:
                    found.append(int(buffer.tobytes()))
            assert channel.state is ChannelState.CLOSED
        child.join()
        return found

    assert run_in(loop, main()) == list(range(50))


def test_a_task_sends_to_a_process_and_waits_until_buffers_are_home(spawn, loop):
    def receiver(pipe, address):
        import bulktransfer as bulk

        with bulk.bind(address) as channel:
            for transfer in channel.buffers():
                pipe.send(transfer.buffer.tobytes())
                channel.pass_(transfer.buffer)

    async def main():
        channel = aio.create("shm:", direction=Direction.TX, trust=Trust.FULL)
        with bulk.Allocator(count=2, size=4096, reclaim=True) as alloc:
            async with channel:
                child = spawn(receiver, channel.address)
                await channel.wait_bound()
                await channel.assign_pool(alloc.pool)
                for number in range(20):
                    buffer = await aio.alloc(alloc)
                    buffer.put(bytes([number]))
                    await channel.move(buffer)
                await channel.destroy()
            assert [child.receive() for _ in range(20)] == [bytes([n]) for n in range(20)]
            child.join()

    run_in(loop, main())


def test_a_killed_peer_breaks_the_channel_for_who_waits(spawn, loop):
    def sender(pipe, address):
        import bulktransfer as bulk

        channel = bulk.bind(address)
        pipe.send("bound")
        channel.receive()

    async def main():
        async with aio.create("shm:", direction=Direction.RX, trust=Trust.FULL) as channel:
            child = spawn(sender, channel.address)
            await channel.wait_bound()
            waiting = asyncio.create_task(channel.receive())
            assert child.receive() == "bound"
            child.kill()
            with pytest.raises(bulk.BrokenChannelError):
                await waiting
            with pytest.raises(bulk.BrokenChannelError):
                await channel.receive()

    run_in(loop, main())


def test_receive_takes_in_order_and_ends_with_the_channel(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            await filled(tx, alloc, b"a", b"b", b"c")
            tx.close()
            assert [event.meta async for event in rx] == [b"a", b"b", b"c", b""]  # the last is the teardown
            with pytest.raises(bulk.EndOfChannelError):
                await rx.receive()
            with pytest.raises(bulk.EndOfChannelError):
                rx.receive_nowait()

    run_in(loop, main())


def test_receive_nowait_looks_and_does_not_wait(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            with pytest.raises(bulk.WouldBlock):
                rx.receive_nowait()
            await filled(tx, alloc, b"a")
            assert rx.receive_nowait().meta == b"a"

    run_in(loop, main())


def test_receive_many_takes_what_is_there_and_waits_for_one(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            waiting = asyncio.create_task(rx.receive_many(3))
            await settle()
            await filled(tx, alloc, b"a", b"b", b"c", b"d")
            assert [event.meta for event in await waiting] == [b"a", b"b", b"c"]
            assert [event.meta for event in await rx.receive_many(3)] == [b"d"]
            with pytest.raises(ValueError, match="0 events"):
                await rx.receive_many(0)

    run_in(loop, main())


def test_receive_buffer_leaves_other_events_to_receive(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            waiting = asyncio.create_task(rx.receive_buffer())
            second = meeting.allocator(tx)
            await asyncio.gather(tx.assign_pool(second.pool), settle())
            await filled(tx, alloc, b"a")
            assert (await waiting).meta == b"a"
            assert (await rx.receive()).kind is EventKind.POOL_ASSIGNED
            tx.close()
            with pytest.raises(bulk.EndOfChannelError):
                await rx.receive_buffer()

    run_in(loop, main())


def test_several_tasks_share_what_one_channel_brings(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line(pool={"count": 32})
            tasks = [asyncio.create_task(rx.receive()) for _ in range(32)]
            await settle()
            await filled(tx, alloc, *[bytes([n]) for n in range(32)])
            assert sorted(event.meta for event in await asyncio.gather(*tasks)) == [bytes([n]) for n in range(32)]

    run_in(loop, main())


def test_one_loop_serves_many_channels(meeting, loop):
    count = 40

    async def source(tx, alloc):
        for number in range(20):
            buffer = await aio.alloc(alloc)
            buffer.put(str(number).encode())
            await tx.move(buffer)
        await tx.destroy()

    async def sink(rx):
        found = []
        async for transfer in rx.buffers():
            with transfer as buffer:
                found.append(int(buffer.tobytes()))
        return found

    async def main():
        before = threading.enumerate()
        async with meeting:
            sinks, sources = [], []
            for _ in range(count):
                tx, rx, alloc = await meeting.line(pool={"count": 2, "reclaim": True})
                sinks.append(sink(rx))
                sources.append(source(tx, alloc))
            found = (await asyncio.gather(*sinks, *sources))[:count]
            assert found == [list(range(20))] * count
        assert threading.enumerate() == before

    run_in(loop, main())


def test_what_nobody_receives_stays_with_the_sender_and_the_loop_is_left_alone(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line(pool={"count": 200})
            metas = [str(number).encode() for number in range(200)]
            await filled(tx, alloc, *metas)
            await settle(20)
            assert not asyncio.get_running_loop().remove_reader(rx.fileno())  # what is readable is not watched
            assert [(await rx.receive()).meta for _ in range(150)] == metas[:150]
            await settle(20)
            second = meeting.allocator(tx)
            await tx.assign_pool(second.pool)  # it is served again
            assert [(await rx.receive()).meta for _ in range(50)] == metas[150:]

    run_in(loop, main())


def test_a_channel_is_served_while_nobody_waits_on_it(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            second = meeting.allocator(rx)
            await rx.assign_pool(second.pool)
            await rx.remove_pool(second.pool)
            await tx.move(alloc.alloc())
            await rx.destroy()
            kinds = [event.kind async for event in tx]
            assert kinds == [EventKind.POOL_ASSIGNED, EventKind.POOL_REMOVED, EventKind.TEARDOWN_RECEIVED]

    run_in(loop, main())


def test_a_channel_outlives_a_loop_and_goes_on_in_the_next(meeting, loop):
    kept = []

    async def first():
        kept.extend(await meeting.line())
        waiting = asyncio.create_task(kept[1].receive())
        await settle()
        waiting.cancel()
        kept[0].sync.move(kept[2].alloc(), b"x")

    async def second():
        async with meeting:
            tx, rx, alloc = kept
            assert (await rx.receive()).meta == b"x"
            await asyncio.gather(tx.move(alloc.alloc(), b"y"), rx.receive())

    run_in(loop, first())
    run_in(loop, second())


def test_two_loops_may_not_wait_on_one_channel_at_once(meeting, loop):
    async def main():
        async with meeting:
            _tx, rx, _alloc = await meeting.line()
            waiting = asyncio.create_task(rx.receive())
            await settle()
            errors = []

            def other():
                try:
                    asyncio.run(rx.receive())
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            assert [type(error) for error in errors] == [RuntimeError]
            waiting.cancel()

    run_in(loop, main())


# -- cancellation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [0, 1, 2, 3, 4])
def test_a_cancelled_receive_loses_nothing(meeting, loop, rounds):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            found = []
            for number in range(40):
                waiting = asyncio.create_task(rx.receive())
                await settle(number % 3)
                buffer = alloc.alloc()
                tx.sync.move(buffer, str(number).encode())
                await settle(rounds)
                waiting.cancel()
                try:
                    event = await waiting
                except asyncio.CancelledError:
                    event = await rx.receive()
                found.append(event.meta)
                rx.sync.pass_(event.buffer)
                alloc.free((await tx.receive()).buffer)
            assert found == [str(number).encode() for number in range(40)]

    run_in(loop, main())


def test_a_timeout_of_asyncio_ends_a_wait_and_loses_nothing(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await rx.receive()
            await filled(tx, alloc, b"a")
            async with asyncio.timeout(10):
                assert (await rx.receive()).meta == b"a"

    run_in(loop, main())


def test_a_cancelled_assignment_is_withdrawn_and_a_retry_works(meeting, loop):
    async def main():
        async with meeting:
            tx, rx = await meeting.channel()
            alloc = meeting.allocator(tx)
            mute(rx)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await tx.assign_pool(alloc.pool)
            assert tx.pools == ()
            there = await meeting.assigned(tx, rx, alloc.pool)
            assert there.id == alloc.pool.id
            assert tx.pools == (alloc.pool,)
            await filled(tx, alloc, b"a")
            assert (await rx.receive()).meta == b"a"

    run_in(loop, main())


def test_the_answer_to_a_cancelled_removal_is_an_event(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            mute(rx)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await tx.remove_pool(alloc.pool)
            assert (await rx.receive()).kind is EventKind.POOL_REMOVED
            assert (await tx.receive()).kind is EventKind.POOL_REMOVED
            assert tx.pools == rx.pools == ()

    run_in(loop, main())


def test_a_cancelled_bind_leaves_nothing(meeting, loop):
    async def main():
        async with meeting:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await aio.bind(f"{meeting.scheme}:nobody-is-here")
            tx = meeting.created()
            mute(tx)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await aio.bind(tx.address, domain=bulk.Domain())
            rx, _ = await asyncio.gather(meeting.bound(tx.address), tx.wait_bound())
            assert rx.state is ChannelState.CONNECTED

    run_in(loop, main())


# -- outcomes ----------------------------------------------------------------------------------------------------------


def test_an_awaited_transfer_returns_when_the_peer_took_it_and_not_before(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            buffer = alloc.alloc()
            mute(rx)
            moving = asyncio.create_task(tx.move(buffer, b"a"))
            await settle(20)
            assert not moving.done()
            event = rx.receive_nowait()
            await moving
            passing = asyncio.create_task(rx.pass_(event.buffer))
            assert (await tx.receive()).buffer is buffer
            await passing
            copying = asyncio.create_task(tx.copy(buffer, b"b"))
            await asyncio.gather(rx.receive(), copying)
            releasing = asyncio.create_task(rx.release(event.buffer))
            assert (await tx.receive()).kind is EventKind.COPY_RELEASED
            await releasing

    run_in(loop, main())


def test_awaited_batches_and_full_copies_arrive(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            first, second = alloc.alloc_many(2)
            _, events = await asyncio.gather(tx.move_many([first, second], [b"1", b"2"]), receive_all(rx, 2))
            assert [event.meta for event in events] == [b"1", b"2"]
            await asyncio.gather(rx.pass_many([event.buffer for event in events]), receive_all(tx, 2))
            await asyncio.gather(tx.copy_many([first, second]), receive_all(rx, 2))
            await asyncio.gather(rx.release_many([event.buffer for event in events]), receive_all(tx, 2))
            first.put(b"text")
            _, (event,) = await asyncio.gather(tx.full_copy(first, second, b"c"), receive_all(rx, 1))
            assert (event.meta, event.buffer.tobytes()) == (b"c", b"text")
            for nothing in (tx.move_many, tx.copy_many, rx.pass_many, rx.release_many):
                await nothing([])

    async def receive_all(channel, count):
        return [await channel.receive() for _ in range(count)]

    run_in(loop, main())


def test_an_aggregate_is_awaited_whole_and_a_cancelled_wait_half_way_loses_nothing(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line(meta_size=64)
            one, two = alloc.alloc_many(2)
            one.put(b"one")
            two.put(b"two")
            sent = bulk.Aggregate([(two, 0, 2), one])
            _, arrived = await asyncio.gather(tx.move(sent, b"note"), rx.receive_aggregate())
            assert (arrived.aggregate.tobytes(), arrived.meta) == (b"twone", b"note")
            _, back = await asyncio.gather(rx.pass_(arrived.aggregate), tx.receive_aggregate())
            assert back.aggregate.tobytes() == b"twone"
            _, arrived = await asyncio.gather(tx.copy(sent), rx.receive_aggregate())
            assert arrived.kind is EventKind.COPY_RECEIVED
            await asyncio.gather(rx.release(arrived.aggregate), tx.receive(), tx.receive())

            metas = gathering.encode(sent, b"", 64)
            tx.sync.move(two, metas[0])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(rx.receive_aggregate(), 0.05)
            assert rx.sync.gathering is not None  # the first half was taken
            tx.sync.move(one, metas[1])
            assert (await rx.receive_aggregate()).aggregate.tobytes() == b"twone"

    run_in(loop, main())


def test_an_aggregate_whose_sender_ends_half_way_is_let_go(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line(meta_size=64)
            one, two = alloc.alloc_many(2)
            tx.sync.move(one, gathering.encode(bulk.Aggregate([one, two]), b"", 64)[0])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(rx.receive_aggregate(), 0.05)
            (held,) = rx.sync.gathering.buffers
            tx.close()
            with pytest.raises(bulk.EndOfChannelError):
                await rx.receive_aggregate()
            assert (rx.sync.gathering, held.state) == (None, bulk.BufferState.INVALID)

    run_in(loop, main())


def test_many_transfers_awaited_at_once_all_return(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line(pool={"count": 200})
            moves = [asyncio.create_task(tx.move(buffer)) for buffer in alloc.alloc_many(200)]
            for _ in range(200):
                await rx.receive()
            await asyncio.gather(*moves)

    run_in(loop, main())


def test_what_is_refused_at_the_call_raises_at_once(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            buffer = alloc.alloc()
            with pytest.raises(bulk.DirectionError):
                await rx.move(buffer)
            with memoryview(buffer), pytest.raises(BufferError):
                await tx.move(buffer)
            with pytest.raises(bulk.PoolAlreadyAssignedError):
                await tx.assign_pool(alloc.pool)

    run_in(loop, main())


async def cycle(meeting):
    """Two channels between two domains, one each way, with one pool on both: a copy of what is lent is refused."""
    a, b = bulk.Domain(), bulk.Domain()
    there = await meeting.channel(a, b)
    back = await meeting.channel(b, a)
    alloc = meeting.allocator(there[0])
    middle = await meeting.assigned(*there, alloc.pool)
    await meeting.assigned(*back, middle)
    buffer = alloc.alloc()
    there[0].sync.copy(buffer)
    return back, (await there[1].receive()).buffer


def test_what_the_peer_refuses_raises_at_the_await(meeting, loop):
    async def main():
        async with meeting:
            (tx, rx), held = await cycle(meeting)
            mute(rx)
            sending = asyncio.create_task(tx.copy(held))
            await settle()
            assert not sending.done()
            with pytest.raises(bulk.WouldBlock):
                rx.receive_nowait()
            with pytest.raises(bulk.CopyRefusedError):
                await sending

    run_in(loop, main())


@pytest.mark.parametrize("rounds", [0, 1, 2, 3, 4])
def test_a_refusal_after_the_wait_was_cancelled_is_an_event(meeting, loop, rounds):
    async def main():
        async with meeting:
            (tx, rx), held = await cycle(meeting)
            mute(rx)
            sending = asyncio.create_task(tx.copy(held))
            await settle()
            assert not sending.done()
            with pytest.raises(bulk.WouldBlock):
                rx.receive_nowait()
            await settle(rounds)
            sending.cancel()
            try:
                await sending
            except asyncio.CancelledError:
                event = await tx.receive()
                assert event.kind is EventKind.OPERATION_REFUSED
                assert event.buffer is held
                assert isinstance(event.error, bulk.CopyRefusedError)
            except bulk.CopyRefusedError:
                assert rounds

    run_in(loop, main())


# -- callbacks ---------------------------------------------------------------------------------------------------------


def test_callbacks_run_in_the_thread_of_the_loop_while_a_task_receives(meeting, loop):
    async def main():
        seen = []

        def on_move(event):
            seen.append((threading.current_thread(), event.meta))
            event.channel.pass_(event.buffer)

        async with meeting:
            tx, rx, alloc = await meeting.line(binder={"callbacks": bulk.Callbacks(move_received=on_move)})
            receiving = asyncio.create_task(rx.receive())
            for meta in (b"a", b"b"):
                await asyncio.gather(tx.move(alloc.alloc(), meta), tx.receive())
            assert seen == [(threading.current_thread(), b"a"), (threading.current_thread(), b"b")]
            receiving.cancel()

    run_in(loop, main())


def test_what_a_callback_raises_reaches_receive_in_its_place(meeting, loop):
    async def main():
        def on_pass(event):
            if event.meta == b"wait":
                event.channel.destroy()  # it would wait, inside a callback
            raise KeyError(event.meta)

        async with meeting:
            tx, rx, alloc = await meeting.line(callbacks=bulk.Callbacks(buffer_received=on_pass))
            first, second, lent = alloc.alloc_many(3)
            await asyncio.gather(tx.move_many([first, second]), tx.copy(lent), rx.receive(), rx.receive(), rx.receive())
            theirs = rx.pools[0]
            rx.sync.pass_(theirs[first.index], b"1")
            rx.sync.release(theirs[lent.index])
            rx.sync.pass_(theirs[second.index], b"wait")
            with pytest.raises(KeyError):
                await tx.receive()
            assert (await tx.receive()).kind is EventKind.COPY_RELEASED
            with pytest.raises(bulk.WouldBlock, match="inside a callback"):
                await tx.receive()

    run_in(loop, main())


def test_a_veto_reaches_the_task_that_asked(meeting, loop):
    async def main():
        def no(event):
            raise ValueError("not this one")

        async with meeting:
            tx, rx = await meeting.channel(binder={"callbacks": bulk.Callbacks(pool_assigned=no)})
            alloc = meeting.allocator(tx)
            receiving = asyncio.create_task(rx.receive())
            with pytest.raises(bulk.PoolVetoError, match="not this one"):
                await tx.assign_pool(alloc.pool)
            receiving.cancel()

    run_in(loop, main())


# -- set-up and end ----------------------------------------------------------------------------------------------------


def test_a_refused_binder_gets_the_reason(meeting, loop):
    async def main():
        async with meeting:
            tx = meeting.created(role=bulk.Role.MASTER)
            waiting = asyncio.create_task(tx.wait_bound())
            with pytest.raises(bulk.RoleConflictError):
                await aio.bind(tx.address, role=bulk.Role.MASTER, domain=bulk.Domain())
            await asyncio.gather(waiting, meeting.bound(tx.address))
            with pytest.raises(bulk.WouldBlock):
                tx.receive_nowait()  # wait_bound took the event

    run_in(loop, main())


def test_an_endpoint_of_a_pair_is_bound_without_blocking_the_loop(loop):
    async def main():
        here, there = bulk.pair(direction=Direction.TX, trust=Trust.FULL, domain=bulk.Domain())
        tx = aio.wrap(here)
        rx, _ = await asyncio.gather(aio.bind(there, domain=bulk.Domain()), tx.wait_bound())
        async with tx, rx:
            assert rx.state is ChannelState.CONNECTED
            assert aio.wrap(here) is tx

    run_in(loop, main())


def test_clients_connect_and_are_accepted_in_one_loop(meeting, loop):
    specs = [
        bulk.ChannelSpec(direction=Direction.RX, trust=Trust.FULL),
        bulk.ChannelSpec(direction=Direction.TX, trust=Trust.FULL),
    ]

    async def client(address, number):
        requests, answers = await aio.connect(address, domain=bulk.Domain())
        async with requests, answers:
            with bulk.Allocator(count=1, size=4096, domain=requests.sync.domain) as alloc:
                await requests.assign_pool(alloc.pool)
                await answers.assign_pool(alloc.pool)
                buffer = alloc.alloc()
                buffer.put(str(number).encode())
                await requests.move(buffer)
                return (await answers.receive_buffer()).buffer.tobytes()

    async def serve(requests, answers):
        async with requests, answers:
            async for transfer in requests.buffers():
                transfer.buffer.put(b"hello, " + transfer.buffer.tobytes())
                answers.sync.move(transfer.buffer)

    async def main():
        async with aio.listen(f"{meeting.scheme}:", specs, domain=bulk.Domain()) as listener:
            serving = []

            async def accept():
                while True:
                    try:
                        serving.append(asyncio.create_task(serve(*await listener.accept())))
                    except bulk.ClosedChannelError:
                        return

            accepting = asyncio.create_task(accept())
            answers = await asyncio.gather(*[client(listener.address, number) for number in range(8)])
            assert answers == [f"hello, {number}".encode() for number in range(8)]
            await asyncio.gather(*serving)
            listener.close()
            await accepting

    run_in(loop, main())


def test_a_cancelled_accept_loses_no_client(meeting, loop):
    async def main():
        spec = bulk.ChannelSpec(direction=Direction.RX, trust=Trust.FULL)
        async with meeting, aio.listen(f"{meeting.scheme}:", [spec], domain=bulk.Domain()) as listener:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await listener.accept()
            (mine,), (theirs,) = await asyncio.gather(
                aio.connect(listener.address, domain=bulk.Domain()), listener.accept()
            )
            meeting.made += [mine, theirs]
            assert mine.state is theirs.state is ChannelState.CONNECTED

    run_in(loop, main())


def test_close_wakes_every_task_that_waits(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            mute(rx)
            tasks = [
                asyncio.create_task(tx.receive()),
                asyncio.create_task(tx.receive_buffer()),
                asyncio.create_task(tx.wait_bound()),
                asyncio.create_task(tx.move(alloc.alloc())),
            ]
            await settle()
            tx.close()
            tx.close()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            closed = bulk.ClosedChannelError
            assert [type(error) for error in found] == [closed, closed, type(None), closed]

    run_in(loop, main())


def test_what_had_arrived_is_received_after_the_own_close(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            await filled(tx, alloc, b"a", b"b")
            assert (await rx.receive()).meta == b"a"
            rx.close()
            assert (await rx.receive()).meta == b"b"
            with pytest.raises(bulk.ClosedChannelError):
                await rx.receive()

    run_in(loop, main())


def test_destroy_returns_when_the_peer_agreed(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, alloc = await meeting.line()
            await filled(tx, alloc, b"a")
            destroying = asyncio.create_task(tx.destroy())
            assert (await rx.receive()).meta == b"a"
            assert (await rx.receive()).kind is EventKind.TEARDOWN_RECEIVED
            await destroying
            with pytest.raises(bulk.ClosedChannelError):
                await tx.receive()

    run_in(loop, main())


def test_destroy_of_a_peer_that_does_not_answer_breaks_the_channel_at_its_deadline(meeting, loop):
    async def main():
        async with meeting:
            tx, rx, _alloc = await meeting.line()
            mute(rx)
            with pytest.raises(bulk.BrokenChannelError):
                await tx.destroy(timeout=0.05)
            assert tx.state is ChannelState.CLOSED

    run_in(loop, main())


def test_alloc_says_when_nobody_could_bring_a_buffer_back(meeting, loop):
    async def main():
        async with meeting:
            _tx, _rx, alloc = await meeting.line()
            with pytest.raises(ValueError, match="reclaim=True"):
                await aio.alloc(alloc)
            lonely = bulk.Allocator(count=1, size=4096, reclaim=True)
            meeting.made.append(lonely)
            await aio.alloc(lonely)
            with pytest.raises(bulk.PoolExhaustedError):
                await aio.alloc(lonely)

    run_in(loop, main())


def test_only_a_channel_can_be_wrapped():
    with pytest.raises(TypeError, match="not of str"):
        aio.wrap("shm:camera")
