"""Managers and workers as real processes, in a temporary folder that belongs to one test."""

from __future__ import annotations

import contextlib
import glob
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.harness import sample_tasks
from vinecore import Manager, PythonTask
from vinecore.protocol import messages
from vinecore.security.shared_secret import write_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PATIENCE_S = 240.0
"""A condition that does not hold after this time never will, however busy the machine is."""

HURRY_S = 250
"""The time that passes at once for a hurried worker: less than its timeout of the manager's heartbeats."""

# between two turns of the loop, so that what starts in one turn and is timed in the same one is timed before
HURRIED = f"""
import asyncio, os, sys, time
hurry, monotonic, turn, passed = sys.argv.pop(1), time.monotonic, asyncio.BaseEventLoop._run_once, 0
def look_and_turn(loop):
    global passed
    passed = {HURRY_S} * os.path.exists(hurry)
    turn(loop)
time.monotonic = lambda: monotonic() + passed
asyncio.BaseEventLoop._run_once = look_and_turn
from vineworker import cli
cli.main()
"""


def wait_until(condition: Callable[[], Any], what: str = "", timeout_s: float = PATIENCE_S) -> Any:
    """Wait until a condition holds; return its value.

    Raises
    ------
    AssertionError
        The condition did not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            msg = f"not within {timeout_s:.0f} s: {what or condition}"
            raise AssertionError(msg)
        time.sleep(0.005)


class WorkerProcess:
    """A worker that a test has started."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log
        self.pid = process.pid

    @property
    def log(self) -> str:
        """Return its output."""
        return self._log.read_text(errors="replace")

    def send(self, number: int) -> None:
        """Send a signal to it."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it with SIGKILL, and wait."""
        self.process.kill()
        self.process.wait()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait until it ends; return its exit code."""
        return self.process.wait(timeout_s)

    def wait_for_log(self, text: str) -> None:
        """Wait until its log has a text."""
        wait_until(lambda: text in self.log, f"{text!r} in the worker's log, which is:\n{self.log}")

    @property
    def descendants(self) -> list[psutil.Process]:
        """Return all its descendants."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []


class LocalCluster:
    """Managers and workers on this machine, with files in one folder, which end with the test.

    Parameters
    ----------
    folder
        The folder of all files, and the temporary folder of all processes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = folder / "secret"
        self.workspace = folder / "workers"
        write_secret(self.secret)
        self._stack = contextlib.ExitStack()
        self._count = 0

    def start_manager(self, kind: Callable[..., Any] = Manager, **more: Any) -> Any:
        """Start a manager."""
        options = {"port": 0, "address": "127.0.0.1", "password_file": self.secret, **more}
        return self._stack.enter_context(kind(**options))

    def start_worker(
        self,
        where: Any,
        *options: str,
        command: Sequence[str] | None = None,
        secret: Path | None = None,
        host: str = "127.0.0.1",
        **env: str,
    ) -> WorkerProcess:
        """Start a worker.

        Parameters
        ----------
        where
            A manager, or its port; None for no address.
        *options
            Options of ``vine_worker``, added to the usual ones.
        command
            The program that runs the worker, instead of this Python.
        host
            The address of the manager.
        **env
            Environment variables of the worker.
        """
        self._count += 1
        log = self.folder / f"worker-{self._count}.log"
        port = where if isinstance(where, int) else getattr(where, "port", 0)
        address = () if where is None else (host, str(port))
        arguments = ["--password", str(secret or self.secret), "--workspace", str(self.workspace), "--cores", "2", "--memory", "2000", "--disk", "2000",
                     "--gpus", "0", "--single-shot", *options]  # fmt: skip
        program = command or [sys.executable, "-m", "vineworker"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*program, *address, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **env}, cwd=self.folder,
            )  # fmt: skip
        worker = WorkerProcess(process, log)
        self._stack.callback(_end, worker)
        return worker

    def start_workers(self, manager: Any, count: int, *options: str, **more: Any) -> list[WorkerProcess]:
        """Start some workers one after another, so that they are numbered in this order, and wait until they are connected."""
        started = []
        for _ in range(count):
            before = manager.workers_connected
            started.append(self.start_worker(manager, *options, **more))
            manager.wait_for_workers(before + 1, PATIENCE_S)
        return started

    def start_hurried_worker(self, manager: Any, *options: str) -> WorkerProcess:
        """Start a worker for which `HURRY_S` seconds pass with `let_time_pass`, and wait until it is connected."""
        command = [sys.executable, "-c", HURRIED, str(self.path("hurry"))]
        [worker] = self.start_workers(manager, 1, *options, command=command)
        return worker

    def let_time_pass(self) -> None:
        """Let `HURRY_S` seconds pass for hurried workers."""
        self.path("hurry").touch()

    def path(self, name: str) -> Path:
        """Return a path in the folder of this test."""
        return self.folder / name

    def count_lines(self, name: str) -> int:
        """Return the number of lines of a file; 0 if there is none."""
        path = self.path(name)
        return len(path.read_text().splitlines()) if path.exists() else 0

    def close(self) -> None:
        """End all managers and workers."""
        self._stack.close()


def _end(worker: WorkerProcess) -> None:
    family = worker.descendants
    if worker.process.poll() is None:
        worker.process.kill()
    worker.process.wait()
    wait_until(lambda: not any(map(is_alive, family)), f"the end of all that a worker has started: {family}")


def is_alive(process: psutil.Process | int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def variables_of_new_user(folder: Path) -> dict[str, str]:
    """Return this process's variables, as a user has them whose secret, registry and temporary files are in a folder."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("VINE_REGISTRY", "CATALOG_HOST", "PYTHONPATH")
    }
    return inherited | dict.fromkeys(("XDG_CONFIG_HOME", "XDG_STATE_HOME", "TMPDIR"), str(folder))


@contextlib.contextmanager
def start_local_cluster(folder: Path, monkeypatch: Any) -> Iterator[LocalCluster]:
    """Make a cluster; its processes, and this one until it ends, have their temporary folder in it."""
    temporary = folder / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.delenv("VINE_REGISTRY", raising=False)
    monkeypatch.delenv("CATALOG_HOST", raising=False)
    local_cluster = LocalCluster(folder)
    try:
        yield local_cluster
    finally:
        local_cluster.close()


def free_port() -> int:
    """Return a free port from a range that outgoing connections do not use."""
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError


# Another order in each process: tests run beside each other.
_ports = iter(random.Random(os.getpid()).sample(range(20_000, 30_000), 10_000))


def find_paths(folder: str | Path, pattern: str) -> list[Path]:
    """Return the paths that match a pattern; other than in `Path.glob`, a folder may vanish in the search."""
    return [Path(folder, name) for name in glob.glob(pattern, root_dir=folder)]


def list_recursively(folder: Path) -> list[str]:
    """Return all files and folders below a folder, also while they are being removed."""
    found = [
        os.path.join(base, name) for base, folders, names in os.walk(folder) for name in (*folders, *names)
    ]
    return sorted(os.path.relpath(path, folder) for path in found)


def used_below(folder: Path) -> int:
    """Count the bytes of all files below a folder, also while they are being removed."""
    total = 0
    for base, _folders, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(base, name)).st_size
    return total


def engine_threads() -> list[str]:
    """Return the names of the engine's threads in this process."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vine")]


def worker_summaries(manager: Any) -> list[dict[str, Any]]:
    """Return what the manager knows of its workers, the oldest first."""
    return sorted(manager.summarize_workers(), key=lambda worker: worker["id"])


def find_python(version: str) -> str:
    """Find an interpreter of a version, without packages of this project; skip the test if there is none."""
    found = shutil.which(f"python{version}")
    candidates = [found] if found else []
    candidates += sorted(map(str, (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")))
    code = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"  # which is not a shim any more
    for path in candidates:
        probe = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True, check=False)
        known, _, executable = probe.stdout.strip().partition(" ")
        if known == version:
            return executable
    pytest.skip(f"there is no python{version} on this machine")


def wait_for_task(m):
    """Return the next task that has ended."""
    task = m.wait(PATIENCE_S)
    assert task is not None
    return task


def scheduler_state(manager: Any, query: Callable[[Any], Any]) -> Any:
    """Return what a query finds in the manager's scheduler, after all earlier events."""
    return manager._server.query(query)


def call_after_each_task(m: Any, react: Callable[[Any], None]) -> None:
    """Call a function with the scheduler after each task that is done, before anything else happens."""

    def watch(scheduler: Any) -> None:
        handlers = scheduler.worker_messages._handlers
        finish = handlers[messages.TaskDone]

        def finish_and_react(worker: Any, message: Any) -> None:
            finish(worker, message)
            react(scheduler)

        handlers[messages.TaskDone] = finish_and_react

    scheduler_state(m, watch)


def age_connection(m: Any, worker: int, seconds: float = 400.0) -> None:
    """Set the times of the last message from a worker, and of the last ping to it, back."""

    def shift(_scheduler: Any) -> None:
        peer = m._server._workers.get(worker)
        if peer is not None:
            peer.last_received_at -= seconds
            peer.pinged_at -= seconds

    scheduler_state(m, shift)


@contextlib.contextmanager
def interrupt_when(condition: Callable[[], Any]) -> Iterator[None]:
    """Interrupt the main thread, as Ctrl-C does, as soon as a condition holds."""

    def interrupt() -> None:
        wait_until(condition, "the condition for the interrupt")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def make_file_and_block(local_cluster, m, size):
    """Make a file on the only worker, and keep that worker busy until the path ``gate`` exists; return both tasks."""
    maker = PythonTask(sample_tasks.make_bytes, size)
    maker.enable_temp_output()
    m.submit(maker)
    assert wait_for_task(m).successful()
    blocker = PythonTask(sample_tasks.held, str(local_cluster.folder), "blocker", "gate")
    m.submit(blocker)
    wait_until(lambda: local_cluster.count_lines("blocker"), "the first worker to be busy")
    return maker, blocker
