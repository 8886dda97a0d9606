"""A bare pipeline: calls from a manager through a worker to a few processes and back, with nobody to decide.

It is a yardstick for the machine and the day, not a design. There is no task, no table and no failure: a call
is a number and a pickle, the worker hands it to the process with the fewest calls, and the answer takes the
same way back. As in the engine, whatever is ready in one turn of an event loop leaves in one frame.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from benchmarks import work

HEAD = struct.Struct("<I")
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode

Take = Callable[[list[Any]], None]


def frame(messages: list[Any]) -> bytes:
    """Encode a list of messages with their length."""
    body = _pack(messages)
    return HEAD.pack(len(body)) + body


class Link(asyncio.Protocol):
    """One end of a connection."""

    def __init__(self, take: Take, lost: Callable[[], None] = lambda: None) -> None:
        self._take, self._lost = take, lost
        self._arrived = bytearray()
        self._leaving: list[Any] = []
        self._transport: asyncio.Transport
        self._loop: asyncio.AbstractEventLoop

    def connection_made(self, transport: Any) -> None:
        self._transport, self._loop = transport, asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        buffer = self._arrived
        buffer += data
        start = 0
        while len(buffer) - start >= HEAD.size:
            end = start + HEAD.size + HEAD.unpack_from(buffer, start)[0]
            if end > len(buffer):
                break
            self._take(_unpack(bytes(buffer[start + HEAD.size : end])))
            start = end
        del buffer[:start]

    def send(self, message: Any) -> None:
        """Have a message leave at the end of this turn of the loop."""
        if not self._leaving:
            self._loop.call_soon(self._flush)
        self._leaving.append(message)

    def _flush(self) -> None:
        self._transport.write(frame(self._leaving))
        self._leaving = []

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()

    def close(self) -> None:
        self._transport.close()


def serve_calls(sock: socket.socket) -> None:
    """Run calls in a slot until the worker closes the connection."""
    with sock, sock.makefile("rb") as stream:
        while head := stream.read(HEAD.size):
            answers = []
            for number, call in _unpack(stream.read(HEAD.unpack(head)[0])):
                function, args = pickle.loads(call)
                answers.append((number, pickle.dumps(function(*args), 5)))
            sock.sendall(frame(answers))


async def relay(port: int, slots: list[socket.socket]) -> None:
    """Distribute calls over slots, as a worker does, until the manager closes the connection."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    links: list[Link] = []
    load = [0] * len(slots)

    def answered(slot: int, messages: list[Any]) -> None:
        load[slot] -= len(messages)
        for message in messages:
            manager.send(message)

    def asked(messages: list[Any]) -> None:
        for message in messages:
            slot = load.index(min(load))
            load[slot] += 1
            links[slot].send(message)

    for number, sock in enumerate(slots):
        link = Link(lambda messages, slot=number: answered(slot, messages))  # type: ignore[misc]
        await loop.create_connection(lambda link=link: link, sock=sock)  # type: ignore[misc]
        links.append(link)
    manager = Link(asked, over.set)
    await loop.create_connection(lambda: manager, "127.0.0.1", port)
    await over.wait()
    for link in links:
        link.close()


def in_child(function: Callable[[], Any]) -> int:
    """Run a function in a forked process; give its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        function()
        status = 0
    finally:
        os._exit(status)


def _be_slot(sock: socket.socket, others: list[socket.socket]) -> None:
    for other in others:  # a slot that held the other ends would keep them from ever seeing the end
        other.close()
    serve_calls(sock)


def be_worker(port: int, slots: int) -> None:
    """Fork the slots, then relay."""
    ours: list[socket.socket] = []
    pids = []
    for _ in range(slots):
        mine, its = socket.socketpair()
        ours.append(mine)
        pids.append(in_child(lambda its=its: _be_slot(its, ours)))  # type: ignore[misc]
        its.close()
    asyncio.run(relay(port, ours))
    for pid in pids:
        os.waitpid(pid, 0)


class Pipeline:
    """The manager's end.

    Parameters
    ----------
    slots
        How many processes run calls.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._loop = asyncio.new_event_loop()
        self._link: Link
        self._calls = self._sent = self._done = self._total = self._most = 0
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        self._worker = in_child(lambda: be_worker(port, slots))
        self._loop.run_until_complete(self._accept(listener))

    async def _accept(self, listener: socket.socket) -> None:
        connected = asyncio.Event()

        def accepted() -> Link:
            self._link = Link(self._answered)
            connected.set()
            return self._link

        server = await asyncio.get_running_loop().create_server(accepted, sock=listener)
        await connected.wait()
        server.close()

    def run(self, calls: int, in_flight: int) -> int:
        """Make calls, with so many of them under way per slot; give the sum of what they return."""
        self._calls, self._most = calls, in_flight * self._slots
        self._sent = self._done = self._total = 0
        self._over = self._loop.create_future()
        self._loop.call_soon(self._top_up)
        self._loop.run_until_complete(self._over)
        return self._total

    def _top_up(self) -> None:
        while self._sent < self._calls and self._sent - self._done < self._most:
            self._link.send((self._sent, pickle.dumps((work.increment, (self._sent,)), 5)))
            self._sent += 1

    def _answered(self, messages: list[Any]) -> None:
        for _number, answer in messages:
            self._total += pickle.loads(answer)
        self._done += len(messages)
        if self._done == self._calls:
            self._over.set_result(None)
        else:
            self._top_up()

    def close(self) -> None:
        """Hang up; the others follow."""
        self._link.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()
        os.waitpid(self._worker, 0)
