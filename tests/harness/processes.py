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
"""How long a condition is waited for before the test fails: what does not come by then hangs, however busy the machine is."""

HURRY_S = 250
"""How much later it is at once for a hurried worker: less than the silence after which it gives its manager up."""

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


def until(condition: Callable[[], Any], what: str = "", timeout_s: float = PATIENCE_S) -> Any:
    """Wait until a condition holds; give its value.

    Raises
    ------
    AssertionError
        It did not come to hold.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            msg = f"waited {timeout_s:.0f} s in vain: {what or condition}"
            raise AssertionError(msg)
        time.sleep(0.005)


class WorkerProcess:
    """A worker that a test has started."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log
        self.pid = process.pid

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def send(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it with SIGKILL, and wait."""
        self.process.kill()
        self.process.wait()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait until it ends; give its exit code."""
        return self.process.wait(timeout_s)

    def says(self, text: str) -> None:
        """Wait until its log has a text."""
        until(lambda: text in self.log, f"{text!r} in the worker's log, which is:\n{self.log}")

    @property
    def family(self) -> list[psutil.Process]:
        """All that descends from it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []


class Yard:
    """Starts managers and workers and, in the end, ends them.

    Parameters
    ----------
    folder
        Where everything is kept; also the temporary folder of all that is started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = folder / "secret"
        self.workspace = folder / "workers"
        write_secret(self.secret)
        self._stack = contextlib.ExitStack()
        self._count = 0

    def manager(self, kind: Callable[..., Any] = Manager, **more: Any) -> Any:
        """Start a manager."""
        options = {"port": 0, "address": "127.0.0.1", "password_file": self.secret, **more}
        return self._stack.enter_context(kind(**options))

    def worker(
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
            A manager, or the port of one; None for no address.
        *options
            Of ``vine_worker``, added to the usual ones.
        command
            What runs the worker instead of this Python.
        host
            The address of the manager.
        **env
            Variables of its environment.
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

    def workers(self, manager: Any, count: int, *options: str, **more: Any) -> list[WorkerProcess]:
        """Start some workers and wait until they are connected, each after the one before, so that they are numbered in this order."""
        started = []
        for _ in range(count):
            before = manager.workers_connected
            started.append(self.worker(manager, *options, **more))
            manager.wait_for_workers(before + 1, PATIENCE_S)
        return started

    def hurried_worker(self, manager: Any, *options: str) -> WorkerProcess:
        """Start a worker for which `HURRY_S` seconds pass when `hurry` is called, and wait until it is connected."""
        command = [sys.executable, "-c", HURRIED, str(self.place("hurry"))]
        [worker] = self.workers(manager, 1, *options, command=command)
        return worker

    def hurry(self) -> None:
        """Have time pass for hurried workers."""
        self.place("hurry").touch()

    def place(self, name: str) -> Path:
        """A path in the folder of this test."""
        return self.folder / name

    def count(self, name: str) -> int:
        """How many lines a file has; 0 if there is none."""
        path = self.place(name)
        return len(path.read_text().splitlines()) if path.exists() else 0

    def end(self) -> None:
        """End everything."""
        self._stack.close()


def _end(worker: WorkerProcess) -> None:
    family = worker.family
    if worker.process.poll() is None:
        worker.process.kill()
    worker.process.wait()
    until(lambda: not any(map(alive, family)), f"the end of all that a worker has started: {family}")


def alive(process: psutil.Process | int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def yard_in(folder: Path, monkeypatch: Any) -> Iterator[Yard]:
    """A yard whose processes, and this one meanwhile, have their temporary folder in it."""
    temporary = folder / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.delenv("VINE_REGISTRY", raising=False)
    monkeypatch.delenv("CATALOG_HOST", raising=False)
    yard = Yard(folder)
    try:
        yield yard
    finally:
        yard.end()


def free_port() -> int:
    """Find a port that nothing else takes before a test does: outgoing connections get none of these."""
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


def paths_in(folder: str | Path, pattern: str) -> list[Path]:
    """Find the paths that match a pattern; for `Path.glob`, a folder that goes meanwhile is an error."""
    return [Path(folder, name) for name in glob.glob(pattern, root_dir=folder)]


def all_in(folder: Path) -> list[str]:
    """Find all files and folders below a folder, also while they are being removed."""
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


def vine_threads() -> list[str]:
    """Names of the engine's threads in this process."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vine")]


def workers_of(manager: Any) -> list[dict[str, Any]]:
    """What the manager knows of its workers, the oldest first."""
    return sorted(manager.summarize_workers(), key=lambda worker: worker["id"])


def find_python(version: str) -> str:
    """Find an interpreter of a version, with nothing of ours installed; skip the test if there is none."""
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


def one_result(m):
    """Give the next task that is over."""
    task = m.wait(PATIENCE_S)
    assert task is not None
    return task


def after_each_done(m: Any, react: Callable[[Any], None]) -> None:
    """Call a function with the manager's mind whenever a task is done, before anything else happens."""

    def watch(mind: Any) -> None:
        handlers = mind.worker_messages._handlers
        finish = handlers[messages.TaskDone]

        def finish_and_react(worker: Any, message: Any) -> None:
            finish(worker, message)
            react(mind)

        handlers[messages.TaskDone] = finish_and_react

    m._engine.query(watch)


def pass_time(m: Any, worker: int, seconds: float = 400.0) -> None:
    """Have the manager believe that it has heard nothing of a worker for longer than it has, and asked it as long ago."""

    def shift(_mind: Any) -> None:
        peer = m._engine._peers.get(worker)
        if peer is not None:
            peer.last_received_at -= seconds
            peer.pinged_at -= seconds

    m._engine.query(shift)


@contextlib.contextmanager
def interrupt_when(condition: Callable[[], Any]) -> Iterator[None]:
    """Interrupt the main thread, as Ctrl-C does, as soon as a condition holds."""

    def interrupt() -> None:
        until(condition, "what is to be interrupted to be under way")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def made_and_held(yard, m, size):
    """Have the only worker make something, and be too busy then to read it itself, until ``gate`` is there; give the two tasks."""
    maker = PythonTask(sample_tasks.make_bytes, size)
    maker.enable_temp_output()
    m.submit(maker)
    assert one_result(m).successful()
    blocker = PythonTask(sample_tasks.held, str(yard.folder), "blocker", "gate")
    m.submit(blocker)
    until(lambda: yard.count("blocker"), "the first worker to be busy")
    return maker, blocker
