"""Several hosts on one machine: network namespaces that are joined by a bridge, with addresses of their own.

Nothing outside of them is touched: the bridge has a namespace, too, and so has whoever a test lets into one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMESPACES = Path("/run/netns")  # where iproute2 keeps them
CLONE_NEWNET = 0x40000000
NETWORK = "10.71.0"
PATIENCE_S = 60.0

_libc = ctypes.CDLL(None, use_errno=True)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def ip(*arguments: object, tool: str = "ip") -> str:
    """Run a tool of iproute2; give what it says.

    Raises
    ------
    RuntimeError
        It has failed.
    """
    command = [tool, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    if done.returncode:
        msg = f"{' '.join(command)}: {done.stderr.strip()}"
        raise RuntimeError(msg)
    return done.stdout


class Host:
    """A host: ``address`` is its own, ``command`` runs something there."""

    def __init__(self, namespace: str, number: int) -> None:
        self.namespace, self.address = namespace, f"{NETWORK}.{number}"
        self.command = ("ip", "netns", "exec", namespace)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Have the sockets that this thread makes meanwhile belong to the host."""
        with open("/proc/thread-self/ns/net") as before, (NAMESPACES / self.namespace).open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    @property
    def sent(self) -> int:
        """Bytes that have left it."""
        (link,) = json.loads(ip("-n", self.namespace, "-s", "-j", "link", "show", "dev", "eth0"))
        return int(link["stats64"]["tx"]["bytes"])

    def block(self, port: int) -> None:
        """Have nobody come in at a port any more, without a word, as a firewall does."""
        ip("-n", self.namespace, "rule", "add", "ipproto", "tcp", "sport", port, "blackhole")

    def slow(self, rate: str) -> None:
        """Limit what leaves it."""
        limit = ("root", "tbf", "rate", rate, "burst", "64kb", "latency", "500ms")
        try:
            ip("-n", self.namespace, "qdisc", "add", "dev", "eth0", *limit, tool="tc")
        except (RuntimeError, FileNotFoundError) as error:
            pytest.skip(f"a slow link needs tc and the kernel's sch_tbf: {error}")


class Relay:
    """Listens on one host, and passes connections on to another one; what comes back may be spoilt on its way.

    Parameters
    ----------
    spoil
        Is given some bytes that come back and how many came before them; gives what goes on, or None to hang up.
    """

    def __init__(self, host: Host, port: int, to: tuple[str, int], spoil: Callable[[bytes, int], bytes | None] = lambda data, _at: data) -> None:  # fmt: skip
        self._host, self._to, self._spoil = host, to, spoil
        with host.inside():
            self._listener = socket.create_server((host.address, port))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._socks: set[socket.socket] = set()
        self._closed = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with self._host.inside(), contextlib.suppress(OSError):
            while True:
                near, _address = self._listener.accept()
                try:
                    far = socket.create_connection(self._to, PATIENCE_S)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                with self._lock:
                    self._socks |= {near, far}
                    if self._closed:
                        break
                    there = threading.Thread(target=self._pump, args=(near, far, lambda data, _at: data))
                    back = threading.Thread(target=self._pump, args=(far, near, self._spoil))
                    self._threads += [there, back]
                there.start()
                back.start()

    def _pump(
        self, source: socket.socket, target: socket.socket, spoil: Callable[[bytes, int], bytes | None]
    ) -> None:
        at = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                passed = spoil(data, at)
                if passed is None:
                    break
                target.sendall(passed)
                at += len(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up everywhere."""
        with self._lock:
            self._closed = True
            socks = [self._listener, *self._socks]
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for sock in (*socks, *self._socks):
            sock.close()


class Hosts:
    """Makes hosts, and removes all that it has made."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._name = f"vine-test-{os.getpid()}"
        self._count = 0
        try:
            self._switch = self._namespace("switch")
            ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            ip("-n", self._switch, "link", "set", "br0", "up")
        except RuntimeError as error:
            self.close()
            pytest.skip(f"network namespaces cannot be made here: {error}")

    def _namespace(self, name: str) -> str:
        namespace = f"{self._name}-{name}"
        ip("netns", "add", namespace)
        self._stack.callback(ip, "netns", "delete", namespace)
        ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def add(self, count: int) -> list[Host]:
        """Make some hosts."""
        return [self._add() for _ in range(count)]

    def _add(self) -> Host:
        self._count += 1
        host, port = Host(self._namespace(str(self._count)), self._count), f"port{self._count}"
        pair = ("link", "add", "eth0", "netns", host.namespace, "type", "veth", "peer", "name", port, "netns", self._switch)  # fmt: skip
        ip(*pair)
        ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
        ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        ip("-n", host.namespace, "link", "set", "eth0", "up")
        return host

    def relay(self, host: Host, port: int, to: tuple[str, int], **spoil: Callable[[bytes, int], bytes | None]) -> Relay:  # fmt: skip
        """Pass connections on from one host to another one."""
        return self._stack.enter_context(contextlib.closing(Relay(host, port, to, **spoil)))

    def close(self) -> None:
        """Remove everything."""
        self._stack.close()


def missing() -> str:
    """What keeps hosts from being made here; "" if nothing does."""
    if not hasattr(_libc, "setns"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (Debian: iproute2)"
    return ""
