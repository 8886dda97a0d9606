"""A real HTCondor pool: one machine, in a Debian of its own that shares nothing with this one but the network."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil

from tests.cluster import debian
from tests.support import until

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = ("iproute2", "minihtcondor", "procps")
USER = "scientist"
CODE = "/opt/daskvine"
CORES = 4
HERE = Path(__file__).parents[2]

CONFIG = f"""\
CONDOR_HOST = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:PORT
SHARED_PORT_PORT = PORT
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
NUM_CPUS = {CORES}
MEMORY = 8000
NEGOTIATOR_INTERVAL = 5
NEGOTIATOR_CYCLE_DELAY = 2
SCHEDD_INTERVAL = 5
UPDATE_INTERVAL = 5
POLLING_INTERVAL = 5
# the root of a chroot is no mount point
MOUNT_UNDER_SCRATCH =
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Pool:
    """A pool and its one user."""

    def __init__(self, root: debian.Root, folder: Path) -> None:
        self.root, self._folder = root, folder
        self._factories: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command as the user; give what it prints."""
        return self.root.run(*command, user=USER, check=check)

    def queue(self) -> list[dict]:
        """All jobs of the pool."""
        return json.loads(self.root.run("condor_q", "-all", "-json") or "[]")

    def pilots(self, status: int = 2) -> list[str]:
        """The jobs that run, or are in another state."""
        return [f"{job['ClusterId']}.{job['ProcId']}" for job in self.queue() if job["JobStatus"] == status]

    def give(self, source: Path, name: str) -> str:
        """Put a file into the user's home, for nobody else to read; give its path inside."""
        inside = f"/home/{USER}/{name}"
        place = Path(f"{self.root.path}{inside}")
        shutil.copyfile(source, place)
        place.chmod(0o600)
        self.root.run("chown", f"{USER}:{USER}", inside)
        return inside

    @contextlib.contextmanager
    def factory(self, *options: str) -> Iterator[Factory]:
        """Run the command ``vine_factory`` as the user; afterwards it is ended, if it has not ended itself."""
        log = self._folder / f"factory-{len(self._factories)}.log"
        words = self.root.command(
            "python3", "-m", "vinecore.factory.cli", *options, user=USER, environment={"PYTHONPATH": CODE}
        )
        with log.open("wb") as output:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._factories.append(process)
        try:
            yield Factory(process, log)
        finally:
            if process.poll() is None:
                Factory(process, log).end()


class Factory:
    """The command as it runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def end(self) -> int:
        """End it as a person would; give its exit code."""
        for inside in psutil.Process(self.process.pid).children():  # what has entered the pool has forked
            inside.terminate()
        return self.process.wait(60)


@contextlib.contextmanager
def pool(folder: Path) -> Iterator[Pool]:
    """A pool that is ready to run jobs; afterwards nothing of it is left."""
    with debian.opened(folder / "debian", *PACKAGES) as root:
        root.run("useradd", "--create-home", USER)
        (root.path / "etc/condor/config.d/99-test").write_text(CONFIG.replace("PORT\n", f"{free_port()}\n"))
        for package in (HERE / "vinecore", HERE / "worker/vineworker", Path(click.__file__).parent):
            shutil.copytree(
                package,
                Path(f"{root.path}{CODE}") / package.name,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        root.run("condor_master")
        try:
            until(
                lambda: "slot" in root.run("condor_status", "-af", "Name", check=False),
                "the pool to have a slot",
                120,
            )
            until(
                lambda: (
                    subprocess.run(root.command("condor_q"), capture_output=True, check=False).returncode == 0
                ),
                "the queue",
            )
            yield Pool(root, folder)
        finally:
            root.run("condor_off", "-master", "-fast", check=False)


__all__ = ["CORES", "USER", "Factory", "Pool", "pool"]
