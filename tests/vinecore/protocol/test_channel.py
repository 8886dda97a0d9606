"""What is sent in one turn of the loop leaves as one frame; what nobody waits for travels along."""

from __future__ import annotations

import asyncio
import socket

from vinecore.protocol import messages as m
from vinecore.protocol.channel import Channel


def test_what_nobody_waits_for_leaves_with_the_next_message_or_when_it_is_pushed():
    async def talk():
        heard: asyncio.Queue[list[m.Message]] = asyncio.Queue()
        ours, theirs = socket.socketpair()
        lost = asyncio.Event()
        here = Channel((), lambda _said: None, lambda _reason: None)
        there = Channel((m.Unlink, m.Ping), heard.put_nowait, lambda _reason: lost.set())
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: there, sock=theirs)
        await loop.create_connection(lambda: here, sock=ours)
        here.send_along(m.Unlink(["a"]))
        here.send(m.Ping())
        assert await asyncio.wait_for(heard.get(), 60) == [m.Unlink(["a"]), m.Ping()]
        here.send_along(m.Unlink(["b"]))
        here.send_along(m.Unlink(["c"]))
        await asyncio.sleep(0)
        assert heard.empty()
        here.push()
        assert await asyncio.wait_for(heard.get(), 60) == [m.Unlink(["b"]), m.Unlink(["c"])]
        here.close()
        await asyncio.wait_for(lost.wait(), 60)

    asyncio.run(talk())
