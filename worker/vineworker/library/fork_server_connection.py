"""The worker's end of the socket between it and a fork server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import deque
from typing import Any, Callable, Optional

MAX_MESSAGE_BYTES = 1 << 17


class ForkServerConnection:
    """Send requests to a fork server, and receive its messages.

    A fork server that imports a module does not read, and its socket has space for some requests
    only. The others wait here, in their order.

    Parameters
    ----------
    on_readable
        Called by the event loop when a message, or the end of the connection, can be received.

    Attributes
    ----------
    remote
        The fork server's end of the socket.
    is_closed
        Whether `close` was called.
    """

    def __init__(self, on_readable: Callable[[], Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._local, self.remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._local.setblocking(False)
        self._loop.add_reader(self._local, on_readable)
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        # modules that the fork server was asked to import
        self._requested_modules: set[str] = set()
        self.is_closed = False

    def send(self, request: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Send a request, with duplicates of these descriptors.

        The exit of the fork server is noticed where its messages are received, not here.
        """
        if self.is_closed:
            return
        self._unsent.append((json.dumps(request).encode(), [os.dup(d) for d in descriptors]))
        if len(self._unsent) == 1:
            self._send_queued()

    def prepare(self, wanted: dict[str, Any]) -> None:
        """Have later forks find the modules and sources that tasks need.

        A module is requested once. Sources are requested each time, as they may have changed.
        """
        new = [name for name in wanted.get("modules", ()) if name not in self._requested_modules]
        sources = wanted.get("sources", ())
        if new or sources:
            self._requested_modules.update(new)
            self.send({"modules": new, "sources": sources})

    def receive(self) -> Optional[dict[str, Any]]:
        """Return the next message, or None at the end of the connection.

        Raises
        ------
        BlockingIOError
            If there is no message yet.
        """
        try:
            data = self._local.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            raise
        except OSError:
            return None
        return dict(json.loads(data)) if data else None

    def close(self) -> None:
        """Close this end, and drop the requests that were not sent."""
        self.is_closed = True
        self._loop.remove_reader(self._local)
        self._loop.remove_writer(self._local)
        self._local.close()
        self._drop_queued()

    def _send_queued(self) -> None:
        try:
            while self._unsent:
                data, descriptors = self._unsent[0]
                if descriptors:
                    socket.send_fds(self._local, [data], descriptors)
                else:
                    self._local.send(data)
                self._drop_first()
        except BlockingIOError:
            self._loop.add_writer(self._local, self._send_queued)
            return
        except OSError:
            self._drop_queued()
        self._loop.remove_writer(self._local)

    def _drop_queued(self) -> None:
        while self._unsent:
            self._drop_first()

    def _drop_first(self) -> None:
        for descriptor in self._unsent.popleft()[1]:
            os.close(descriptor)
