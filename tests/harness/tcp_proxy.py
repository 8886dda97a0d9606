"""Connections through a proxy."""

from __future__ import annotations

import socket
import struct
import threading


class TcpProxy:
    """Stands between a worker and its manager, and can cut what goes through it."""

    def __init__(self, port):
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _address = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        try:
            to_server = any(source is near for near, _far in self._pairs)
            while data := source.recv(1 << 16):
                sink.sendall(self.passes(data, to_server))
        except OSError:
            pass
        for sock in (source, sink):
            close_at_once(sock)

    def passes(self, data, to_server):
        """Return the bytes to pass on for bytes from a client, or from the server."""
        return data

    def cut(self):
        """Reset every connection, as a router that has lost its state does."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                close_at_once(sock)

    def close(self):
        """Close all connections, and accept no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


def close_at_once(sock):
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()
