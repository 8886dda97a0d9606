"""Data on their way: what is moved, loaded and counted, and the processes at the other end."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

MB = 1 << 20
PIECE = 1 << 18

# ---- files


def write_noise(path: Path, megabytes: int) -> Path:
    """Write a file that nothing could make smaller."""
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(MB))
    return path


@contextlib.contextmanager
def sender(path: Path) -> Iterator[int]:
    """Run a process that sends a file to every client that connects; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = f"from benchmarks import data; data.send({listener.fileno()}, {str(path)!r})"
        process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[listener.fileno()])
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.wait()


def send(descriptor: int, path: str) -> None:
    """Send a file to every client that connects, until the process is killed."""
    listener = socket.socket(fileno=descriptor)
    while True:
        sock, _address = listener.accept()
        with sock, open(path, "rb") as file:
            size = sent = os.fstat(file.fileno()).st_size
            while sent:
                sent -= os.sendfile(sock.fileno(), file.fileno(), size - sent, sent)


def receive(port: int, path: Path) -> int:
    """Receive that file, and write it; give its size."""
    piece, size = memoryview(bytearray(MB)), 0
    with socket.create_connection(("127.0.0.1", port)) as sock, path.open("wb", buffering=0) as file:
        while got := sock.recv_into(piece):
            file.write(piece[:got])
            size += got
    return size


# ---- arrays


def array(megabytes: int) -> Any:
    """Return an array of this size."""
    return np.arange(megabytes * MB // 8, dtype=np.float64)


def length(values: Any) -> int:
    """Something small that needs the whole array to be there."""
    return len(values)


def private_mb(_after: Any = None) -> float:
    """Memory of this process that it shares with nobody and no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    msg = "no RssAnon in /proc/self/status: this needs Linux"
    raise OSError(msg)


def grown_mb(values: Any, before: float) -> float:
    """Read all of an array and return by how much the private memory has grown, in MB."""
    if not values.sum() > 0:
        raise AssertionError
    return private_mb() - before


def grown_by_pickle(path: Path, megabytes: int) -> float:
    """Return by how much the memory grows when an array is loaded with plain pickle, in MB."""
    path.write_bytes(pickle.dumps(array(megabytes), protocol=5))
    before = private_mb()
    with path.open("rb") as file:
        return grown_mb(pickle.load(file), before)


# ---- graphs


def branches(count: int) -> dict[str, dict[str, Any]]:
    """Return the description of branches that each vertex of a NanoAOD graph carries.

    It has some 300 bytes for each branch, and all vertices share one object.
    """
    return {
        f"Collection{n // 10}_variable{n}": {
            "class": "ListOffsetArray", "offsets": "i64", "form_key": f"nCollection{n // 10},!load,%2Foffsets,{n:x}" * 2,
            "content": {"class": "NumpyArray", "primitive": "float32", "form_key": f"Collection{n // 10}_variable{n},!load,%2Fcontent"},
            "parameters": {"__doc__": f"variable {n} of the objects of collection {n // 10}, as it was measured"},
        }
        for n in range(count)
    }  # fmt: skip


def project(layout: dict[str, Any], path: str, start: int, stop: int) -> int:
    """Do next to nothing with a partition."""
    return len(layout) + len(path) + stop - start


def analysis(partitions: int, count: int) -> tuple[dict[Any, Any], Any, int]:
    """Build a graph as dask-awkward does: a vertex for each partition, and a tree of sums.

    All vertices of the first layer have the same layout object.

    Returns
    -------
    graph, key, value
        The key of the total, and what it should be.
    """
    from dask import _task_spec  # here, because workers import this module, and need no dask

    layout, path = branches(count), "root://somewhere.example.org//store/data/nano.root"
    graph: dict[Any, Any] = {
        ("project", n): _task_spec.Task(("project", n), project, layout, path, 1000 * n, 1000 * (n + 1))
        for n in range(partitions)
    }
    layer = list(graph)
    while len(layer) > 1:
        sums = []
        for start in range(0, len(layer), 8):
            key = ("sum", len(graph))
            graph[key] = (sum, layer[start : start + 8])
            sums.append(key)
        layer = sums
    return graph, layer[0], partitions * (count + len(path) + 1000)


# ---- what is sent


class Counter:
    """Stands between a manager and its workers, and counts what the manager sends them, on whatever connection.

    Parameters
    ----------
    port
        Where the manager listens.
    """

    def __init__(self, port: int) -> None:
        self.sent = 0
        self._manager = port
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                near, _address = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._manager))
                threading.Thread(target=self._pass_on, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(far, near, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                if counts:
                    with self._lock:
                        self.sent += len(data)
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let nobody in any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def worker(port: int, secret: Path, cores: int) -> Iterator[None]:
    """Run a worker that looks for its manager at a port."""
    command = [sys.executable, "-m", "vineworker", "127.0.0.1", str(port), "--password", str(secret), "--cores", str(cores), "--single-shot"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
