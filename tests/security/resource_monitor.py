"""What has to be as it was before somebody hostile came."""

from __future__ import annotations

import contextlib
import gc
import resource
import socket
import threading

import psutil

from tests.harness.processes import list_recursively, wait_for_task, wait_until
from vinecore import Task

MOST_GROWTH = 64 << 20


def works(m):
    """Have a task run."""
    task = Task("echo fine")
    m.submit(task)
    assert wait_for_task(m).output == "fine\n"


@contextlib.contextmanager
def unharmed(m, local_cluster, logs=lambda: ""):
    """While this lasts, and when it is over, the manager serves; afterwards it has the descriptors, threads, files and memory that it had, and no log has the secret."""
    works(m)
    process = psutil.Process()
    gc.collect()

    def has():
        guests = [thread for thread in threading.enumerate() if thread.name in ("vine-guest", "vine-tls")]
        own = 4 * m.workers_connected  # for the control connection of a worker, and idle ones for files
        return process.num_fds() - own, len(guests) - own

    before, memory, files = has(), process.memory_info().rss, _files(local_cluster)
    workers = m.workers_connected
    yield
    wait_until(lambda: m.workers_connected >= workers, "the workers to be there")
    works(m)
    wait_until(
        lambda: all(now <= then + 4 for now, then in zip(has(), before, strict=True)),
        f"descriptors and threads to be those of before: {before}",
    )
    assert process.memory_info().rss - memory < MOST_GROWTH
    assert not [name for name in _files(local_cluster) - files if not name.endswith((".log", ".txt"))]
    secret = local_cluster.secret.read_text().strip()
    assert secret not in logs() + "".join(
        path.read_text(errors="replace") for path in local_cluster.folder.glob("*.log")
    )


def _files(local_cluster):
    """All files outside of the folders of workers and factories, which come and go."""
    return {
        path
        for path in list_recursively(local_cluster.folder)
        if "vine-" not in path and local_cluster.path(path).is_file()
    }


@contextlib.contextmanager
def many_files(count):
    """Allow this process so many open files; skipped by the caller if that cannot be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, hard)))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def crowd(port, count):
    """So many connections on which nothing is said; they do not wait until they are accepted."""
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(("127.0.0.1", port))
            socks.append(sock)
        yield socks
