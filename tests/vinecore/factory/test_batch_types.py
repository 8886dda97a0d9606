"""A batch system is one class and one line in a table."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import Factory, Task
from vinecore.factory import batch_types
from vinecore.factory.adaptive import GONE, RUNNING, JobStatus
from vinecore.factory.batch_system import BatchSystem, worker_command_line


class Processes(BatchSystem):
    """Pilots are plain processes of this machine."""

    IGNORED_SETTINGS = ("batch_options",)

    def __init__(self):
        self._numbers = itertools.count(1)
        self._jobs = {}

    @classmethod
    def create(cls, options):
        return cls()

    @classmethod
    def manager_host(cls, manager):
        return manager.bound_address

    def submit(self, count, order):
        command = [sys.executable, "-m", "vineworker", *worker_command_line(order)]
        command += ["--single-shot", "--password", str(order.password_file)]
        names = [f"job-{next(self._numbers)}" for _ in range(count)]
        for name in names:
            self._jobs[name] = subprocess.Popen(
                [*command, "--feature", f"pilot:{order.factory}/{name}"],
            )
        return names

    def status(self):
        return {name: JobStatus(RUNNING if job.poll() is None else GONE) for name, job in self._jobs.items()}

    def remove(self, names):
        for name in names:
            self._jobs[name].terminate()

    def close(self):
        self.remove(self._jobs)
        for job in self._jobs.values():
            job.wait()


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.setitem(batch_types.BATCH_SYSTEMS, "processes", f"{__name__}.Processes")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Processes.__module__])


@pytest.mark.usefixtures("processes")
def test_new_batch_system_runs_and_replaces_workers(local_cluster):
    m = local_cluster.start_manager()
    settings = {"min_workers": 1, "max_workers": 1, "cores": 1, "factory_period": 0.2}
    with Factory("processes", manager=m, **settings) as factory:
        m.wait_for_workers(1, PATIENCE_S)
        m.submit(Task("echo fine"))
        assert m.wait(PATIENCE_S).output == "fine\n"
        first = m.summarize_workers()[0]["id"]
        factory._batch.remove(["job-1"])
        wait_until(lambda: [w["id"] for w in m.summarize_workers()] not in ([], [first]), "another worker")
    assert m.workers_connected == 0


@pytest.mark.usefixtures("processes")
def test_ignored_setting_of_new_type_is_refused(local_cluster):
    """Ignored setting of new batch system is refused."""
    with pytest.raises(ValueError, match="no effect on workers of type 'processes'"):
        Factory("processes", manager=local_cluster.start_manager(), batch_options="x")


def test_unknown_batch_system_names_known_ones():
    """Unknown batch system is refused with the known ones."""
    with pytest.raises(ValueError, match="there are 'local', 'condor', 'slurm' and 'dask'"):
        batch_types.load_batch_system("cloud")
