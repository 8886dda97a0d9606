"""What the vertices of these tests do. Apart from the tests, so that a worker imports nothing else."""

from __future__ import annotations

import os
import socket

import numpy as np

GATE_S = 240.0


def by_value(text, **more):
    """A function as it is defined in a notebook."""
    space = {"__name__": "__main__", **more}
    exec(text, space)
    return space["f"]


def inc(x):
    return x + 1


def add(x, y):
    return x + y


def total(*parts):
    return sum(parts)


def process(*_after):
    """The process it runs in."""
    return os.getpid()


def parent(*_after):
    """The process that this one was forked from."""
    return os.getppid()


def variable(name, *_after):
    return os.environ.get(name)


def text_of(name):
    """The text of a file next to the vertex."""
    with open(name) as file:
        return file.read()


def write_down(path, text, value=None, *_after):
    """Leave a line in a file, which the test reads: the line is there once for each execution."""
    with open(path, "a") as file:
        file.write(f"{text}\n")
    return value


def stop_at(port, name, value=None, *_after):
    """Stop at a gate until the test opens it; see `gate.Gate`."""
    with socket.create_connection(("127.0.0.1", port), timeout=GATE_S) as gate:
        gate.sendall(f"{name}\n".encode())
        gate.recv(1)
    return os.getpid() if value is None else value


def make_bytes(count, *_after):
    return bytes(count)


def length(data, *_after):
    return len(data)


def step(log, name, *_after):
    """Take longer than what is sent to a slot ahead of need."""
    write_down(log, name)
    return sum(range(200_000))


def last_step(log, name, *_after):
    """The same under a name of its own, so that it counts as something else."""
    return step(log, name)


class TwoArguments(Exception):
    """Its constructor takes something else than what it leaves in ``args``."""

    def __init__(self, run, lumi):
        super().__init__(f"run {run}, lumi {lumi}")
        self.run, self.lumi = run, lumi


class KeywordOnly(Exception):
    def __init__(self, *, path):
        super().__init__(f"cannot read {path}")
        self.path = path


def divide(x):
    return x / 0


def in_between(x):
    return divide(x)


def reread(path):
    try:
        return in_between(1)
    except ZeroDivisionError as error:
        raise OSError(5, "bad file", path) from error


def only_elsewhere(pid):
    """Fail in one process."""
    if os.getpid() == pid:
        raise RuntimeError("not in this process")


def grow(value, number, path="", at=None):
    """One step of a chain; every third result is too large for a message. At one step it raises, or ends its process the first time."""
    if number == at:
        if not path:
            raise ArithmeticError(f"step {number}")
        if not os.path.exists(path):
            write_down(path, "died")
            os._exit(3)
    counted = len(value) if isinstance(value, bytes) else value
    return bytes(counted + 1) if number % 3 == 0 and counted else counted + 1


# ---- with large arrays


def count_up(length, start):
    return np.arange(start, start + length)


def twice(array):
    return 2 * array


def from_memory(array):
    """An array of the same size, of ones if the one it was given does not come from a file."""
    owner = array
    while getattr(owner, "base", None) is not None:
        owner = owner.base
    kind = type(owner.obj if isinstance(owner, memoryview) else owner)
    return np.full(len(array), int(kind is bytearray))


def overwrite(array):
    array[:] = 0
    return array


def sums(first, second):
    return int(first.sum()), int(second.sum())


def die_once(array, flag):
    if not os.path.exists(flag):
        with open(flag, "w"):
            os._exit(1)
    return 2 * array


def refuse(array):
    return len(array) // 0
