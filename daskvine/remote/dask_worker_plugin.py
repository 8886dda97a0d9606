"""Start and end the vine worker of a node inside a Dask worker.

Sent by value, as nothing of this package need be installed there; so it refers to nothing else in it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from distributed import WorkerPlugin

GRACE_S = 30.0  # for a vine worker that is let go, and hands over what only it has
MOST_WORDS = 500


class PilotPayload(NamedTuple):
    """All that a pilot needs on its node. Shows nothing of what is in it: Dask prints what it cannot run."""

    name: str  # of the pilot's plugin
    file: bytes  # the worker as one file
    secret: bytes
    wrapper: tuple[str, ...]
    options: tuple[str, ...]
    env: dict[str, str]

    def __repr__(self) -> str:
        return f"<what {self.name} needs>"


def probe_node(dask_worker: Any) -> tuple[tuple[str, ...], int, int]:
    """Return the node of a Dask worker, and its cores and bytes of memory there; 0 without a limit.

    Workers of one node have the host's name, the address and the control group in common: so it is also what a batch system
    limits and ends as one, and two of its jobs on one host are two nodes.
    """
    try:
        group = Path("/proc/self/cgroup").read_text(errors="replace")
    except OSError:  # not on macOS
        group = ""
    host = dask_worker.address.partition("://")[2].rpartition(":")[0]
    limit = dask_worker.memory_manager.memory_limit
    return (socket.gethostname(), host, group), dask_worker.state.nthreads, limit or 0


async def start_pilot(parcel: PilotPayload, dask_worker: Any) -> str:
    """Start the vine worker of this node; say why that cannot be done."""
    if parcel.name in dask_worker.plugins:
        await dask_worker.plugin_remove(name=parcel.name)
    try:
        pilot = VineWorkerPlugin(parcel, dask_worker.local_directory)
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    await dask_worker.plugin_add(plugin=pilot, name=parcel.name)
    return ""


class VineWorkerPlugin(WorkerPlugin):
    """A vine worker as a child of a Dask worker.

    It is on a leash, a pipe that ends with the Dask worker, however that ends. The secret goes through the pipe, and is in no file.
    """

    def __init__(self, parcel: PilotPayload, folder: str) -> None:
        self.name = parcel.name
        self._folder = tempfile.mkdtemp(prefix="vine-", dir=folder)
        try:
            file = os.path.join(self._folder, "vine_worker.pyz")
            Path(file).write_bytes(parcel.file)
            command = [*parcel.wrapper, sys.executable, file, *parcel.options, "--workspace", self._folder]
            # what the Dask worker can import, tasks can, too
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
            with open(os.path.join(self._folder, "log"), "wb") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self._folder, start_new_session=True,
                    env={**os.environ, "PYTHONPATH": paths, "VINE_PYTHONPATH": os.environ.get("PYTHONPATH", ""), **parcel.env},
                )  # fmt: skip
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        assert self._process.stdin is not None
        self._leash = self._process.stdin.fileno()
        os.set_blocking(self._leash, False)
        self._kill_group(parcel.secret + b"\n")

    def _kill_group(self, said: bytes) -> None:
        try:
            os.write(self._leash, said)
        except OSError:  # it has ended, or does not listen now
            pass

    def setup(self, worker: Any) -> None:
        """Start to answer polls; called by Dask."""
        worker.handlers[self.name] = self.poll

    def poll(self) -> dict[str, Any]:
        """Return whether the vine worker runs; it exits without polls."""
        code = self._process.poll()
        if code is None:
            self._kill_group(b".")
            return {"code": None, "words": ""}
        try:
            said = Path(self._folder, "log").read_bytes()[-MOST_WORDS:]
        except OSError as error:  # with the Dask worker's folder
            said = str(error).encode()
        lines = said.decode(errors="replace").strip().splitlines()
        return {"code": code, "words": lines[-1] if lines else ""}

    async def teardown(self, worker: Any) -> None:
        """Let the vine worker go, and see that it does; called by Dask, also when the Dask worker is closed."""
        worker.handlers.pop(self.name, None)
        assert self._process.stdin is not None
        self._process.stdin.close()
        deadline = time.monotonic() + GRACE_S
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                self._process.kill()
            await asyncio.sleep(0.02)
        shutil.rmtree(self._folder, ignore_errors=True)
