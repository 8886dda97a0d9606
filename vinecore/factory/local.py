"""Workers as processes of this machine."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from vinecore.factory.adaptive import GONE, RUNNING, JobStatus
from vinecore.factory.batch_system import (
    BatchError,
    BatchOptions,
    BatchSystem,
    PilotSpec,
    worker_command_line,
)
from vinecore.factory.interfaces import ManagedManager
from vinecore.factory.pilot_script import write_worker_zipapp
from vinecore.factory.settings import FactorySettings
from vinecore.protocol import import_paths, temporary_folders
from vinecore.protocol.messages import PILOT_FEATURE_PREFIX
from vinecore.protocol.ports import is_loopback
from vinecore.protocol.transfer.archive import unpack_safely
from vinecore.protocol.trees import remove_tree

MAX_LINES_SHOWN = 10
"""How much of the workers' output an error shows."""
GRACE_S = 30.0  # to hand over what only they have, where the manager stays, and to keep what is to be kept
NEVER_S = 1_000_000.0
POLL_INTERVAL_S = 0.2
WORKER = "import sys; sys.path[:] = filter(None, sys.path); from vineworker.cli import main; main()"
"""The program of a worker: without the working folder, where modules of the user may be called as some of Python's are."""


class Local(BatchSystem):
    """Starts workers on this machine.

    Parameters
    ----------
    workspace : path or None
        Where workers make their folders; None for the system's place for temporary files.
    keep_workspace : bool
        Whether files of the cache level "forever" stay in the workspace for later workers.
    transfer_address : str
        On which workers fetch from each other; "" for all addresses of this machine.
    """

    IGNORED_SETTINGS = ("batch_options", "condor_requirements", "workers_blocked", "wrapper_input")
    RUNS_HERE = True

    def __init__(
        self, workspace: str | Path | None = None, keep_workspace: bool = False, transfer_address: str = ""
    ) -> None:
        self._base = None if workspace is None else Path(workspace).expanduser()
        self._keep_workspace, self._transfer_address = keep_workspace, transfer_address
        self._numbers = itertools.count(1)
        self._unpacked: dict[Path, list[str]] = {}
        self._named: dict[str, subprocess.Popen[bytes]] = {}
        self._log_positions: dict[str, int] = {}
        if self._base is not None:
            self._base.mkdir(parents=True, exist_ok=True)
        base = None if self._base is None else str(self._base)
        self._cleaner = temporary_folders.start_removing_abandoned(None, base)
        self.folder = temporary_folders.create_folder("vine-local-", base)

    @classmethod
    def default_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return a constant number of workers, unless there is a range, and a short period."""
        least, most = settings.get("min_workers", 1), settings.get("max_workers")
        if most is None and least == 0:
            msg = "min_workers=0: say how many there may be as well, with max_workers"
            raise ValueError(msg)
        most = least if most is None else most
        return {"min_workers": least, "max_workers": most, "factory_period": POLL_INTERVAL_S}

    @classmethod
    def manager_host(cls, manager: ManagedManager | None) -> str:
        """Return the address by which workers of this machine find a manager of this process."""
        bound = "::" if manager is None else manager.bound_address
        return "127.0.0.1" if bound in ("0.0.0.0", "::") else bound  # noqa: S104 - compared

    @classmethod
    def create(cls, options: BatchOptions) -> Local:
        """Make a folder for the workers; if their manager is on loopback only, so are they."""
        bound = "" if options.manager is None else options.manager.bound_address
        return cls(
            options.workspace or options.scratch_dir,
            options.keep_workspace,
            bound if is_loopback(bound) else "",
        )

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The workers' processes."""
        return list(self._named.values())

    @property
    def log(self) -> str:
        """The output of the workers."""
        path = Path(self.folder) / "workers.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def submit(self, count: int, order: PilotSpec) -> list[str]:
        """Start so many workers."""
        return [self._start(order) for _ in range(count)]

    def _start(self, order: PilotSpec) -> str:
        name, settings = str(next(self._numbers)), order.settings
        words = worker_command_line(order, NEVER_S if settings.fixed else None)
        command = [*shlex.split(settings.wrapper), *self._worker_command(settings), "--single-shot",
                   "--password", str(order.password_file), "--feature", f"{PILOT_FEATURE_PREFIX}{order.factory}/{name}"]  # fmt: skip
        command += ["--parent-death", str(os.getpid())]
        command += (
            ["--workspace", str(self._base), "--keep-workspace"]
            if self._keep_workspace
            else ["--workspace", self.folder]
        )
        if self._transfer_address:
            command += ["--transfer-address", self._transfer_address]
        command += words
        with open(Path(self.folder) / "workers.log", "ab") as log:
            self._log_positions[name] = log.tell()
            # what the user can import, tasks can, too; the working folder of a script is on its path, but not on a worker's
            paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
            if settings.python_env:
                paths = ""  # another Python has its own
            chosen = settings.env or {}
            paths = os.pathsep.join(filter(None, (chosen.get("PYTHONPATH"), paths)))
            try:
                self._named[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=import_paths.lend_python_path(paths, {**os.environ, **chosen}),
                    start_new_session=True,  # Ctrl-C in the terminal is for the program, and not for its workers
                )
            except OSError as error:
                self.last_failure = f"{shlex.join(command)}\n  cannot be started: {error}"
                msg = f"a worker cannot be started: {error}"
                raise BatchError(msg) from error
        return name

    def _worker_command(self, settings: FactorySettings) -> list[str]:
        """Return the command of a worker: a program, or our own in this Python or that of an archive."""
        archive, program = settings.python_env, os.path.expanduser(settings.worker_binary)
        if program:
            return [shutil.which(program) or program]
        if not archive:
            if not sys.executable:
                # so it is where Python is part of another program
                self.last_failure = msg = "sys.executable is empty: set it to the path of a Python"
                raise BatchError(msg)
            return [sys.executable, "-c", WORKER]
        path = Path(archive).expanduser().absolute()
        if path not in self._unpacked:
            self._unpacked[path] = self._unpack(path)
        return self._unpacked[path]

    def _unpack(self, archive: Path) -> list[str]:
        folder = Path(tempfile.mkdtemp(prefix="env-", dir=self.folder))
        pyz = write_worker_zipapp(folder)
        python = folder / "bin" / "python"
        try:
            with tarfile.open(archive) as tar:
                unpack_safely(tar, str(folder))
            if not os.access(python, os.X_OK):
                msg = "it has no bin/python"
                raise ValueError(msg)
            if (folder / "bin" / "conda-unpack").exists():
                subprocess.run(
                    [str(python), str(folder / "bin" / "conda-unpack")], check=True, capture_output=True
                )
        except (OSError, ValueError, tarfile.TarError, subprocess.CalledProcessError) as error:
            remove_tree(str(folder))
            self.last_failure = msg = f"the environment {archive} cannot be used: {error}"
            raise BatchError(msg) from error
        return [str(python), str(pyz)]

    def status(self) -> dict[str, JobStatus]:
        """Return which workers run."""
        found = {}
        for name, process in list(self._named.items()):
            code = process.poll()
            if code is None:
                found[name] = JobStatus(RUNNING)
            else:
                del self._named[name]
                what = (
                    f"its process got signal {-code}"
                    if code < 0
                    else f"its exit code is {code}: {self._log_excerpt()}"
                )
                begin = self._log_positions.pop(name)
                if code:
                    self.last_failure = self._describe_end(process, begin)
                found[name] = JobStatus(GONE, what, code == 0, ran=True)
        return found

    def _describe_end(self, process: subprocess.Popen[bytes], log_position: int) -> str:
        code = process.returncode
        log = (Path(self.folder) / "workers.log").read_bytes()[log_position:]
        lines = log.decode(errors="replace").rstrip().splitlines()[-MAX_LINES_SHOWN:]
        how = f"got signal {-code}" if code < 0 else f"ended with exit status {code}"
        said = "\n".join(f"    {line}" for line in lines)
        command = cast("list[str]", process.args)
        return f"{shlex.join(command)}\n  {how}; its last output:\n{said or '    (none)'}"

    def _log_excerpt(self) -> str:
        return (self.log.rstrip().splitlines() or [""])[-1]

    def remove(self, names: Sequence[str]) -> None:
        """End some of them."""
        self._end([self._named.pop(name) for name in names if name in self._named])

    def _end(self, processes: list[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + GRACE_S
        for process in processes:
            try:
                process.wait(max(0.01, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        """End the workers and remove their files."""
        self._end(self.processes)
        self._named = {}
        temporary_folders.remove_folder(self.folder)
        self._cleaner.join(GRACE_S)
