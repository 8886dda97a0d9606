"""What the tasks of tests do. A module of its own, with nothing to import, because workers import it."""

from __future__ import annotations

import os
import signal
import sys
import time


def note(path, text=""):
    """Append a line to a file, in one write: how a test counts what happens in other processes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def wait_for(path, timeout_s=240.0):
    """Wait until a file exists."""
    deadline = time.monotonic() + timeout_s
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.005)


def add(x, y):
    return x + y


def square(x):
    return x * x


def who():
    return os.getpid(), os.getppid()


def counted(folder, name, value=None):
    """Leave word that this was run, and by whom."""
    note(f"{folder}/{name}", os.getpid())
    return value


def held(folder, name, gate):
    """Leave word, then wait for a file."""
    note(f"{folder}/{name}", os.getpid())
    wait_for(f"{folder}/{gate}")
    return name


def held_length(folder, name, gate, value):
    """As `held`; give how long a value is."""
    held(folder, name, gate)
    return len(value)


def dies_once(folder, name, number=signal.SIGKILL):
    """Die by a signal the first time, work the second."""
    first = not os.path.exists(f"{folder}/{name}")
    note(f"{folder}/{name}", os.getpid())
    if first:
        os.kill(os.getpid(), number)
    return name


def dies(folder, name, words, number=signal.SIGSEGV):
    """Say something and die by a signal, every time."""
    note(f"{folder}/{name}", os.getpid())
    print(words, flush=True)
    os.kill(os.getpid(), number)


def leaves(folder, name, code=3):
    """End the process by an exit code that nobody asked for."""
    note(f"{folder}/{name}", os.getpid())
    os._exit(code)


def kills_its_worker(folder, name):
    """Kill the worker that this runs on: the parent of a slot is its library, whose parent is the worker."""
    note(f"{folder}/{name}", os.getpid())
    with open(f"/proc/{os.getppid()}/stat") as file:
        worker = int(file.read().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    time.sleep(60)


def make_bytes(size, seed=0):
    """Some bytes that are not all the same."""
    return bytes((seed + i) % 251 for i in range(251)) * (size // 251 + 1)


def length(data):
    return len(data)


def digest(data):
    import hashlib

    return hashlib.sha256(data).hexdigest()


def starts_process(folder, name):
    """Start a process that would outlive this one, and wait for ever."""
    import subprocess

    child = subprocess.Popen(["sleep", "1000"])
    note(f"{folder}/{name}", child.pid)
    time.sleep(1000)


PERSISTENT = [
    sys.executable,
    "-c",
    "import sys\nfrom vineworker import cli\nsys.argv.remove('--single-shot')\ncli.main()",
]
"""The command of a worker that outlives its manager."""


def make_block(first, size):
    """Bytes of which the first counts."""
    return bytes([first % 256]) + bytes(size - 1)


def add_blocks(blocks):
    return make_block(sum(block[0] for block in blocks), len(blocks[0]))


def first_of_block(block):
    return block[0]
