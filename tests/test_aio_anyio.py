"""Under anyio, with asyncio or trio below, a channel's descriptor is enough: the recipe of docs/how-to/asyncio.md."""

from __future__ import annotations

import pytest

import bulktransfer as bulk
from test_docs import TOP, blocks_of
from worlds import World

anyio = pytest.importorskip("anyio")

PAGE = "docs/how-to/asyncio.md"


@pytest.fixture
def receive():
    """The recipe, as the page has it."""
    (block,) = [b for b in blocks_of(PAGE, (TOP / PAGE).read_text()) if "wait_readable(channel" in b.text]
    names = {}
    exec(compile(block.text, PAGE, "exec"), names)
    return names["receive"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("scheme", ["local", "shm"])
def test_the_recipe_receives_and_a_cancelled_wait_loses_nothing(backend, scheme, receive):
    pytest.importorskip(backend)

    async def main():
        with World(scheme) as world:
            tx, rx, alloc, _ = world.line(meta_size=8)
            found = []

            async def consume():
                while len(found) < 3:
                    found.append((await receive(rx)).meta)

            with anyio.move_on_after(0.01) as scope:
                await receive(rx)
            assert scope.cancelled_caught
            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(consume)
                    for meta in (b"a", b"b", b"c"):
                        await anyio.sleep(0)
                        tx.move(alloc.alloc(), meta)
            assert found == [b"a", b"b", b"c"]
            tx.close()
            assert (await receive(rx)).kind is bulk.EventKind.TEARDOWN_RECEIVED
            with pytest.raises(bulk.EndOfChannelError):
                await receive(rx)

    anyio.run(main, backend=backend)
