"""A real HTCondor pool: one machine, in a Debian of its own that shares nothing with this one but the network."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING

from tests.cluster import debian_container
from tests.cluster.batch_pools import Pool, free_port, furnish
from tests.harness.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGES = ("iproute2", "minihtcondor", "procps")
CORES = 4

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


class Condor(Pool):
    """The pool."""

    def queue(self) -> list[dict]:
        """All jobs of the pool."""
        return json.loads(self.root.run("condor_q", "-all", "-json") or "[]")

    def pilots(self, status: int = 2) -> list[str]:
        """The jobs that run, or are in another state."""
        return [f"{job['ClusterId']}.{job['ProcId']}" for job in self.queue() if job["JobStatus"] == status]


@contextlib.contextmanager
def pool(folder: Path, *packages: str) -> Iterator[Condor]:
    """A pool that is ready to run jobs, with further packages; afterwards nothing of it is left."""
    with debian_container.opened(folder / "debian", *PACKAGES, *packages) as root:
        furnish(root)
        (root.path / "etc/condor/config.d/99-test").write_text(CONFIG.replace("PORT\n", f"{free_port()}\n"))
        root.run("condor_master")
        try:
            wait_until(
                lambda: "slot" in root.run("condor_status", "-af", "Name", check=False),
                "the pool to have a slot",
                120,
            )
            wait_until(
                lambda: (
                    subprocess.run(root.command("condor_q"), capture_output=True, check=False).returncode == 0
                ),
                "the queue",
            )
            yield Condor(root, folder)
        finally:
            root.run("condor_off", "-master", "-fast", check=False)
