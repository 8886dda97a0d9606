"""A worker with a fault, named by the first argument; the others are those of ``vine_worker``."""

from __future__ import annotations

import os
import socket
import sys

from vineworker import cli
from vineworker.worker import Worker

from vinecore.protocol.transfer import client, content, server
from vinecore.protocol.transfer.client import TransferConnection

FAULTS = {}


def fault(function):
    FAULTS[function.__name__] = function
    return function


@fault
def unreachable():
    """Announces a port on which nobody listens, as behind a firewall that refuses."""
    open_door = Worker._start_peer_server

    def wrong_door(self):
        door = open_door(self)
        with socket.socket() as sock:
            sock.bind(("", 0))
            self._data_port = sock.getsockname()[1]
        return door

    Worker._start_peer_server = wrong_door


@fault
def no_door():
    """Says that nobody can fetch from it."""
    open_door = Worker._start_peer_server

    def no_port(self):
        door = open_door(self)
        self._data_port = 0
        return door

    Worker._start_peer_server = no_port


@fault
def truncating():
    """Sends half of every object to its peers, and closes the connection."""

    def half(words, content, **_more):
        data = content if isinstance(content, bytes) else open(content, "rb").read()
        words.send({"size": len(data), "directory": False})
        words.sock.sendall(data[: len(data) // 2])
        message = "cut"
        raise ConnectionError(message)

    server._send_object = half


@fault
def denying():
    """Has none of the objects that it said it had."""

    def gone(words, content, **_more):
        words.send({"gone": "no such object"})

    server._send_object = gone


@fault
def stalling():
    """Announces an object and then sends nothing."""

    def silence(words, content, **_more):
        words.send({"size": 1 << 20, "directory": False})
        words.sock.recv(1)

    server._send_object = silence


@fault
def forging():
    """Asks its peers for objects with tokens that it has made up."""
    bring = TransferConnection.get_unverified

    def forged(self, name, path, expected="", **token):
        if token:
            token["token"] = "00" * 32
        return bring(self, name, path, expected, **token)

    TransferConnection.get_unverified = forged


@fault
def impatient():
    """Gives a silent peer up after two seconds."""
    client.STALL_TIMEOUT_S = content.STALL_TIMEOUT_S = server.STALL_TIMEOUT_S = 2.0


@fault
def unspeakable():
    """Says of what the tasks of one core have used what cannot be said."""
    from vineworker.tasks import processes

    processes.usage_for_message = lambda _peak, _wall_s: {
        "cores": float("nan"),
        "memory": 0,
        "disk": 0,
        "wall_s": 0.0,
    }


def relayed(alter):
    """Have somebody stand before its port, who alters what it sends."""
    from tests.harness.tcp_proxy import TcpProxy

    class Altering(TcpProxy):
        def passes(self, data, to_server):
            return data if to_server else alter(data)

    open_door = Worker._start_peer_server

    def wrong_door(self):
        door = open_door(self)
        self._data_port = Altering(self._data_port).port
        return door

    Worker._start_peer_server = wrong_door


@fault
def altered_heads():
    """Somebody alters what it says of the objects that it sends."""
    relayed(lambda data: data.replace(b'"directory": false', b'"directory": null '))


@fault
def altered_contents():
    """Somebody alters the objects that it sends, which do not end with a line."""
    relayed(lambda data: data if data.endswith(b"\n") else data[:-1] + bytes([data[-1] ^ 1]))


if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    os.environ["PYTHONUNBUFFERED"] = "1"
    cli.main()
