"""What is sent in one turn of the loop leaves as one frame; what nobody waits for travels along."""

from __future__ import annotations

import asyncio
import math
import socket

import msgspec
import pytest

from vinecore.protocol import frames
from vinecore.protocol import messages as m
from vinecore.protocol.channel import MessageChannel
from vinecore.protocol.frames import json_dumps, strict_json_dumps


def test_lazy_message_leaves_with_next():
    """What nobody waits for leaves with the next message or when it is pushed."""

    async def talk():
        heard: asyncio.Queue[list[m.Message]] = asyncio.Queue()
        ours, theirs = socket.socketpair()
        lost = asyncio.Event()
        here = MessageChannel((), lambda _said: None, lambda _reason: None)
        there = MessageChannel((m.RemoveObjects, m.Ping), heard.put_nowait, lambda _reason: lost.set())
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: there, sock=theirs)
        await loop.create_connection(lambda: here, sock=ours)
        here.send_lazily(m.RemoveObjects(["a"]))
        here.send(m.Ping())
        assert await asyncio.wait_for(heard.get(), 60) == [m.RemoveObjects(["a"]), m.Ping()]
        here.send_lazily(m.RemoveObjects(["b"]))
        here.send_lazily(m.RemoveObjects(["c"]))
        await asyncio.sleep(0)
        assert heard.empty()
        here.flush_soon()
        assert await asyncio.wait_for(heard.get(), 60) == [m.RemoveObjects(["b"]), m.RemoveObjects(["c"])]
        here.close()
        await asyncio.wait_for(lost.wait(), 60)

    asyncio.run(talk())


def deep():
    value: list = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("dumps", "value"),
    [(msgspec.json.encode, object()), (msgspec.json.encode, "\udc80"), (msgspec.json.encode, deep()), (json_dumps, b"bytes"), (json_dumps, deep()),
     (strict_json_dumps, math.nan), (strict_json_dumps, {1j: 1})],
    ids=["object", "surrogate", "deep", "bytes", "deep for Python", "NaN", "key"],
)  # fmt: skip
@pytest.mark.parametrize("place", range(5))
def test_unencodable_message_costs_only_itself(dumps, value, place):
    """A message that cannot be encoded costs only itself."""
    said = [m.Cancel([number]) for number in range(5)]
    odd = said[place] = m.Cancel(value)
    arrived, refused = asyncio.run(exchange(said, dumps))
    assert arrived == [message for message in said if message is not odd]
    ((message, reason),) = refused
    assert message is odd
    assert 0 < len(reason) <= 600


def test_large_messages_are_split_or_refused(
    monkeypatch,
):
    """Messages that are too large together go apart and one that is too large alone does not go."""
    monkeypatch.setattr(frames, "MAX_PAYLOAD", 1000)
    said = [m.PutObject(f"object-{number}", b"x" * 400) for number in range(7)]
    arrived, refused = asyncio.run(exchange([*said, m.PutObject("large", b"x" * 1001)], json_dumps))
    assert arrived == said
    assert [message.name for message, _reason in refused] == ["large"]
    assert "1,0" in refused[0][1]


def test_surrogate_arrives_as_question_mark():
    """Half a surrogate pair arrives as a question mark where any decoder has to understand."""
    arrived, refused = asyncio.run(exchange([m.Cancel(["a\udc80b", "\N{SNOWMAN}"])], strict_json_dumps))
    assert (arrived, refused) == ([m.Cancel(["a?b", "\N{SNOWMAN}"])], [])


async def exchange(said, dumps):
    """Say something in one turn of the loop, and give what arrives, and what could not be sent, with the reasons."""
    arrived, refused = [], []
    ours, theirs = socket.socketpair()
    lost = asyncio.Event()
    here = MessageChannel(
        (), lambda _said: None, lambda _reason: None, dumps, unsent=lambda *what: refused.append(what)
    )
    there = MessageChannel((m.Cancel, m.PutObject), arrived.extend, lambda _reason: lost.set())
    there._reader._forms = {"Cancel": lambda _any: True, "PutObject": lambda _any: True}
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: there, sock=theirs)
    await loop.create_connection(lambda: here, sock=ours)
    for message in said:
        here.send(message)
    await asyncio.sleep(0)
    here.close()
    await asyncio.wait_for(lost.wait(), 60)
    return arrived, refused
