"""A gate that vertices stop at, so that a test sees which of them run at the same time."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading


class Gate:
    """Vertices come here with `vertices.stop_at` and go on when it is opened.

    Attributes
    ----------
    port : int
        Where.
    """

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._arrived = queue.Queue()
        self._held = {}
        self._open = False
        self._thread = threading.Thread(target=self._serve, name="gate")
        self._thread.start()

    def _serve(self):
        while True:
            try:
                sock, _address = self._listener.accept()
            except OSError:
                return
            with sock.makefile() as file:
                name = file.readline().strip()
            with self._lock:
                if self._open:
                    sock.close()
                else:
                    self._held[name] = sock
            self._arrived.put(name)

    def wait_for(self, count, timeout_s=240.0):
        """Give the names of the next vertices that arrive; raise what has ended the computation instead."""
        names = [self._arrived.get(timeout=timeout_s) for _ in range(count)]
        for name in names:
            if isinstance(name, BaseException):
                raise name
        return names

    def watch(self, computing):
        """Have `wait_for` hear of a computation that fails before its vertices arrive."""
        computing.add_done_callback(lambda over: over.exception() and self._arrived.put(over.exception()))

    @property
    def waiting(self):
        """How many have arrived and nobody has asked for."""
        return self._arrived.qsize()

    def let(self, name):
        """Let one go on."""
        with self._lock:
            self._held.pop(name).close()

    def open(self):
        """Let all go on, also those who come later."""
        with self._lock:
            self._open = True
            held, self._held = self._held, {}
        for sock in held.values():
            sock.close()

    def close(self):
        self.open()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
