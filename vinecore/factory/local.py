"""Workers as processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vinecore.protocol import bulk

if TYPE_CHECKING:
    from typing_extensions import Self

    from vinecore.manager import Manager

GRACE_S = 3.0
KEEPING_GRACE_S = 30.0  # for workers that have something to keep
LOOK_S = 0.2
SHORT_LIFE_S = 5.0
MOST_PAUSE_S = 30.0


class Factory:
    """Keeps a number of workers running on this machine.

    Parameters
    ----------
    batch_type : {"local"}
        Where workers run.
    manager : Manager
        Whom they work for.
    min_workers, max_workers : int
        How many; as many as ``min_workers`` are started and kept.
    cores, memory, disk : int or None
        What each offers; None for what the machine has.
    workspace : path or None
        Where workers make their folders; None for the system's place for temporary files.
    keep_workspace : bool
        Whether files of the cache level "forever" stay in the workspace for later workers.

    Examples
    --------
    >>> with Factory("local", manager=m):  # doctest: +SKIP
    ...     hist.compute(scheduler=m.get)
    """

    def __init__(self, batch_type: str = "local", manager: Manager | None = None, *, min_workers: int = 1, max_workers: int | None = None,
                 cores: int | None = None, memory: int | None = None, disk: int | None = None, workspace: str | Path | None = None,
                 keep_workspace: bool = False) -> None:  # fmt: skip
        if batch_type != "local":
            msg = f"batch_type={batch_type!r}: only 'local' is there; start workers elsewhere with the command vine_worker HOST PORT"
            raise ValueError(msg)
        if manager is None:
            msg = "give the manager that the workers are for: Factory('local', manager=m)"
            raise ValueError(msg)
        if min_workers < 1 or (max_workers is not None and max_workers < min_workers):
            msg = f"min_workers={min_workers}, max_workers={max_workers}: use 1 or more, and not more than max_workers"
            raise ValueError(msg)
        if keep_workspace and workspace is None:
            msg = (
                "keep_workspace=True needs a workspace that later workers can name: add workspace='my-folder'"
            )
            raise ValueError(msg)
        self._manager, self.min_workers, self.max_workers = manager, min_workers, max_workers or min_workers
        self.cores, self.memory, self.disk = cores, memory, disk
        self._base = None if workspace is None else Path(workspace).expanduser()
        self._keep_workspace = keep_workspace
        self._folder: str | None = None
        self._pid = os.getpid()
        self.processes: list[subprocess.Popen[bytes]] = []
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None

    def start(self, *, replace: bool = True) -> Self:
        """Start the workers; with ``replace``, start another one when one dies."""
        if self._base is not None:
            Path(self._base).mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.mkdtemp(prefix="vine-local-", dir=self._base)
        self._stopping.clear()
        self._manager._closers.append(
            self.stop
        )  # who forgets to stop a factory must not find its workers days later
        for _ in range(self.min_workers):
            self.start_worker()
        if replace:
            self._keeper = threading.Thread(target=self._keep, name="vine-factory", daemon=True)
            self._keeper.start()
        return self

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start one more worker."""
        assert self._folder is not None
        command = [sys.executable, "-m", "vineworker", "127.0.0.1", str(self._manager.port), "--single-shot", "--parent-death", str(self._pid),
                   "--timeout", "1000000", "--password", str(self._manager.password_file)]  # fmt: skip
        command += (
            ["--workspace", str(self._base), "--keep-workspace"]
            if self._keep_workspace
            else ["--workspace", self._folder]
        )
        for option, value in (("--cores", self.cores), ("--memory", self.memory), ("--disk", self.disk)):
            if value is not None:
                command += [option, str(value)]
        with open(Path(self._folder) / "workers.log", "ab") as log:
            # what the user can import, tasks can, too; the working folder of a script is on its path, but not on a worker's
            paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": paths},
            )
        self.processes.append(process)
        return process

    def _keep(self) -> None:
        pause, started = LOOK_S, time.monotonic()
        while not self._stopping.wait(pause):
            lived_s = time.monotonic() - started
            dead = [p for p in self.processes if p.poll() is not None]
            for process in dead:
                self.processes.remove(process)
                self.start_worker()
            if lived_s > SHORT_LIFE_S + pause:
                pause = LOOK_S
            elif dead:  # they do not live long: try again, but not for ever as fast as possible
                pause = min(2 * pause, MOST_PAUSE_S)
            if dead:
                started = time.monotonic()

    @property
    def log(self) -> str:
        """What the workers have said."""
        return (
            "" if self._folder is None else (Path(self._folder) / "workers.log").read_text(errors="replace")
        )

    def stop(self) -> None:
        """End the workers and remove their files."""
        if self._folder is None or os.getpid() != self._pid:
            return
        self._stopping.set()
        if self._keeper is not None:
            self._keeper.join()
        if self.stop in self._manager._closers:
            self._manager._closers.remove(self.stop)
        for process in self.processes:
            process.terminate()
        deadline = time.monotonic() + (KEEPING_GRACE_S if self._keep_workspace else GRACE_S)
        for process in self.processes:
            try:
                process.wait(max(0.01, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = []
        bulk.remove(self._folder)
        self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
