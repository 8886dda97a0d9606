"""Dask clusters as others start them: worker processes of one machine, and jobs of a batch system.

The batch system is two scripts: a job is a shell script in a session of its own, with an address of its own, as if on a node of its own; it is cancelled
by killing its process group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.harness.processes import wait_until

JOBS = 2
QUIET = {"host": "127.0.0.1", "dashboard_address": ":0"}
MEMORY_MB = 400

SUBMIT = """\
#!/bin/sh
script=$(mktemp {folder}/job-XXXXXX) && cp "$1" "$script"
setsid sh "$script" >"$script.log" 2>&1 </dev/null &
echo "submitted $!"
"""
CANCEL = """\
#!/bin/sh
kill -s KILL -- "-$1" 2>/dev/null || true
"""
PYTHON = """\
#!/bin/sh
export PYTHONPATH={folder}/nothing
cd {folder}
exec {python} "$@" --host "127.1.$(($$ / 250 % 250)).$(($$ % 250 + 1))"
"""


class Cluster:
    """A cluster, a client of it, and how it loses a half of what it has.

    Attributes
    ----------
    nodes
        How many there are.
    cores
        Of each node.
    """

    def __init__(self, dask: Any, client: Any, nodes: int, cores: int) -> None:
        self.dask, self.client, self.nodes, self.cores = dask, client, nodes, cores

    @property
    def logs(self) -> str:
        """What its processes have said."""
        return f"{self.client.get_worker_logs()} {self.client.get_scheduler_logs()}"

    def lose_half(self, factory: Any) -> list[psutil.Process]:
        """Kill a half of it, and wait until that is replaced; give the vine workers that were there."""
        before = pilots(factory)
        workers = set(self.client.nthreads())
        self.kill(before[0])

        def replaced() -> bool:
            self.mend()
            now = set(self.client.nthreads())
            return len(now) == len(workers) and now != workers

        wait_until(replaced, "the cluster to replace what it has lost")
        return before

    def kill(self, pilot: psutil.Process) -> None:
        """Kill the Dask worker that holds a vine worker; its nanny starts another one."""
        os.kill(pilot.ppid(), signal.SIGKILL)

    def mend(self) -> None:
        """See that what was lost is replaced."""

    def close(self) -> None:
        """End it."""
        self.client.close()
        # a nanny kills its worker and has two seconds to see its end, however busy the machine is
        with contextlib.suppress(TimeoutError):
            self.dask.close()


class Jobs(Cluster):
    """A cluster of jobs."""

    def kill(self, pilot: psutil.Process) -> None:
        """Kill a job, as its batch system does."""
        os.killpg(os.getpgid(pilot.ppid()), signal.SIGKILL)

    def mend(self) -> None:
        """Submit what lacks."""
        self.dask.scale(jobs=JOBS)

    def close(self) -> None:
        """End all jobs."""
        groups = [int(job.job_id) for job in self.dask.workers.values()]
        super().close()
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def local() -> Cluster:
    """Two Dask workers on one node."""
    from distributed import Client, LocalCluster

    dask = LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=f"{MEMORY_MB} MiB", dashboard_address=":0"
    )
    return Cluster(dask, Client(dask, set_as_default=False), 1, 2)


def jobs(folder: Path) -> Cluster:
    """Two nodes with one Dask worker on each, as dask-jobqueue starts them."""
    from dask_jobqueue.core import Job, JobQueueCluster
    from distributed import Client

    for name, text in (("submit", SUBMIT), ("cancel", CANCEL), ("python", PYTHON)):
        path = folder / name
        path.write_text(text.format(folder=folder, python=sys.executable))
        path.chmod(0o700)

    for name in ("daskvine", "vinecore", "vineworker"):  # of which the nodes have nothing
        (folder / "nothing" / name).mkdir(parents=True)
        (folder / "nothing" / name / "__init__.py").write_text("raise ImportError('not on this node')")

    class ScriptJob(Job):  # type: ignore[misc]
        config_name = "local"
        submit_command = str(folder / "submit")
        cancel_command = str(folder / "cancel")

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "shebang": "#!/bin/sh"})
            self.job_header = ""

    class ScriptCluster(JobQueueCluster):  # type: ignore[misc]
        job_cls = ScriptJob

    dask = ScriptCluster(
        cores=1, processes=1, memory=f"{MEMORY_MB} MiB", python=str(folder / "python"), local_directory=str(folder), scheduler_options=QUIET,
    )  # fmt: skip
    dask.scale(jobs=JOBS)
    client = Client(dask, set_as_default=False)
    client.wait_for_workers(JOBS, 60)
    return Jobs(dask, client, JOBS, 1)


def pilots(factory: Any) -> list[psutil.Process]:
    """All vine workers that a factory has started, wherever they hang in the tree of processes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if any(
                word.endswith("vine_worker.pyz") for word in command
            ) and f"/{factory._id}/" in f"/{' '.join(command)}".replace("pilot:", "/"):
                found.append(process)
    return found
