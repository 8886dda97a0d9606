"""A process that hosts many simulated workers, each with a connection of its own."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec

from benchmarks.scaling import files
from benchmarks.scaling.workers import Worker
from vinecore.protocol import authentication, handshake
from vinecore.protocol import messages as m
from vinecore.protocol.channel import MessageChannel

DIALLING = 32  # connections that are made at the same time
PATIENCE_S = 60.0

_dumps = msgspec.json.Encoder().encode
_loads = msgspec.json.Decoder().decode


class Orders(NamedTuple):
    """What a crowd is told to be."""

    port: int
    secret: str
    first: int  # number of the first worker
    workers: int
    cores: int
    result_bytes: int
    call_s: float


class Crowd:
    """The workers of one process."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        numbers = range(orders.first, orders.first + orders.workers)
        self.workers = [Worker(n, orders.cores, orders.result_bytes, orders.call_s) for n in numbers]
        self._connected = 0
        self._held: list[Callable[[], None]] | None = None  # what waits for the end of a pause
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Future[None]

    async def live(self) -> None:
        """Connect all workers, and serve until the manager has let the last one go."""
        loop = self._loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        self._connected = len(self.workers)
        with ThreadPoolExecutor(DIALLING) as threads:
            dialled = [loop.run_in_executor(threads, self._dial) for _worker in self.workers]
            await asyncio.gather(*map(self._serve, self.workers, dialled))
        await self._over

    def obey(self, order: str) -> None:
        """Have all workers hear nothing ("hold"), or go on with what they have been told meanwhile ("go")."""
        self._loop.call_soon_threadsafe(self._hold if order == "hold" else self._go)

    def _hold(self) -> None:
        self._held = []

    def _go(self) -> None:
        held, self._held = self._held or [], None
        for hear in held:
            hear()

    def _dial(self) -> tuple[socket.socket, bytes]:
        sock = socket.create_connection(("127.0.0.1", self._orders.port), timeout=PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = handshake.connect(sock, self._orders.secret.encode(), "worker")
        sock.setblocking(False)
        return sock, key

    async def _serve(self, worker: Worker, dialled: Any) -> None:
        def received(messages: list[m.Message]) -> None:
            if self._held is not None:
                self._held.append(functools.partial(received, messages))
                return
            for message in worker.hear(messages):
                channel.send(message)

        sock, key = await dialled
        channel = MessageChannel(
            m.FROM_MANAGER,
            received,
            self._lost,
            _dumps,
            _loads,
            authentication.sender_and_receiver(key, "client"),
        )
        await asyncio.get_running_loop().create_connection(lambda: channel, sock=sock)
        channel.send(worker.hello)

    def _lost(self, _reason: str) -> None:
        self._connected -= 1
        if not self._connected and not self._over.done():
            self._over.set_result(None)


def _listen(crowd: Crowd) -> None:
    """Take orders, and do not outlive who gives them: their end of the pipe closes then."""
    for line in sys.stdin:
        crowd.obey(line.strip())
    os._exit(0)


def main() -> None:
    """Read orders from standard input, live, and tell what was done."""
    orders = Orders(*json.loads(sys.stdin.readline()))
    files.allow(orders.workers + 100)
    gc.disable()  # what many workers keep is looked through again and again, and none of it is in cycles
    crowd = Crowd(orders)
    threading.Thread(target=_listen, args=(crowd,), daemon=True).start()
    asyncio.run(crowd.live())
    done, fetched = (sum(getattr(w, name) for w in crowd.workers) for name in ("done", "fetched"))
    sys.stdout.write(json.dumps({"done": done, "fetched": fetched}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the other thread still reads


if __name__ == "__main__":
    main()
