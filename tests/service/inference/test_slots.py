"""service/inference/slots.py: refusals, waiting in turn, and the estimate for Retry-After. No clocks, no sleeps."""

import asyncio

import pytest

from service.errors import NotReady, Overloaded
from service.inference.slots import Slots
from tests.service.inference.test_batcher import WAIT_S, later, run, turns


def test_a_reservation_is_refused_whole() -> None:
    async def body() -> None:
        slots = Slots(10, 1)
        with slots.reserve(6):
            with pytest.raises(Overloaded, match=r"6 images are queued and 5 more would pass the limit of 10"):
                slots.reserve(5).__enter__()
            with slots.reserve(4), pytest.raises(Overloaded):
                slots.check()
            assert slots.held == 6
        assert slots.held == 0

    run(body)


def test_retry_after_comes_from_the_measured_rate() -> None:
    slots = Slots(100, workers=2)
    assert slots.retry_after_s == 1  # nothing measured yet
    slots.measured(2, 1.0)  # half a second an image: two workers do four images a second
    with slots.reserve(40), pytest.raises(Overloaded) as refused:
        slots.reserve(61).__enter__()
    assert refused.value.retry_after_s == pytest.approx(10)
    slots.measured(1, 1.5)
    with slots.reserve(20):
        assert slots.retry_after_s == pytest.approx(20 * (0.8 * 0.5 + 0.2 * 1.5) / 2)


def test_a_batch_enters_as_room_comes_and_leaves_room_for_others() -> None:
    """64 images wait beside single ones: they hold half of the room, single images are admitted, all get through."""

    async def body() -> None:
        slots, gate, most = Slots(8, 1), asyncio.Event(), 0

        async def image() -> None:
            nonlocal most
            async with slots.when_free(later()):
                most = max(most, slots.held)
                await gate.wait()

        batch = [asyncio.create_task(image()) for _ in range(64)]
        await turns()
        assert slots.held == 4
        with slots.reserve(1), slots.reserve(3), pytest.raises(Overloaded):
            slots.check()
        gate.set()
        await asyncio.gather(*batch)
        assert most == 4
        assert slots.held == 0
        assert await slots.drain(WAIT_S)

    run(body)


def test_waiting_images_are_first_when_room_comes() -> None:
    async def body() -> None:
        slots = Slots(2, 1)
        reserved = slots.reserve(2)
        reserved.__enter__()
        waiting = asyncio.create_task(slots.when_free(later()).__aenter__())
        await turns()
        reserved.__exit__(None, None, None)
        assert slots.held == 1  # handed over at once: a new request does not overtake
        await waiting

    run(body)


def test_a_caller_that_leaves_while_it_waits_takes_nothing() -> None:
    async def body() -> None:
        slots = Slots(1, 1)

        async def image() -> None:
            async with slots.when_free(later()):
                pass

        with slots.reserve(1):
            first, second = asyncio.create_task(image()), asyncio.create_task(image())
            await turns()
            first.cancel()
            with pytest.raises(Overloaded, match="no room came in the queue of 1 images before the deadline"):
                await slots.when_free(asyncio.get_running_loop().time() + 0.01).__aenter__()
        second.cancel()  # in the same turn of the loop in which it gets its slot
        assert isinstance((await asyncio.gather(second, return_exceptions=True))[0], asyncio.CancelledError)
        assert slots.held == 0
        assert await slots.drain(WAIT_S)

    run(body)


def test_close_refuses_what_waits() -> None:
    async def body() -> None:
        slots = Slots(1, 1)
        with slots.reserve(1):
            waiting = asyncio.create_task(slots.when_free(later()).__aenter__())
            await turns()
            slots.close()
            with pytest.raises(NotReady):
                await waiting
        for refused in (slots.check, slots.reserve(1).__enter__):
            with pytest.raises(NotReady):
                refused()

    run(body)
