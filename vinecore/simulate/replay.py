"""A workload, and the machines it ran on, from the journal of a real run.

What a task computes is as long as it ran where it was done at last; what it read from a storage and loaded is in that. Results and files have the sizes that were
seen. Tasks are submitted when they were, and workers come and go when they did, so the simulation of a run can be compared with the run itself.

Left out are tasks that were never done: those that failed, those that were cancelled, and those that nobody needed. What such a task had made before the journal
began is a file of the storage. A task with several outputs has one result of their size. Of the workers all have the resources that most had, and a library has a
slot for each core.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vinecore.journal.history import History, load
from vinecore.simulate.settings import Cluster, Failures
from vinecore.simulate.workload import MANAGER, STORAGE, SimulatedFile, SimulatedTask, Workload, WorkloadError

UNKNOWN_MB = 1_000_000_000  # of a worker that does not say how much it has


@dataclass(frozen=True)
class RecordedRun:
    """A run as it was.

    Attributes
    ----------
    workload : Workload
        What was computed, and when it was submitted.
    cluster : Cluster
        The machines; of links a journal says nothing.
    failures : Failures
        When each worker came and went.
    makespan_s : float
        How long it took, from the first submission to the end of the last task that was done.
    left_out : int
        Tasks that were submitted and never done.
    """

    workload: Workload
    cluster: Cluster
    failures: Failures
    makespan_s: float
    left_out: int


def load_recording(path: str | Path) -> RecordedRun:
    """Read a journal.

    Parameters
    ----------
    path
        The file, its folder, or a ``run_info_path``: then the most recent one.

    Raises
    ------
    FileNotFoundError, vinecore.journal.InvalidJournalError
        There is no journal.
    WorkloadError
        No task was done, or there was no worker.
    """
    history = load(path)
    done = {number: task for number, task in history.tasks.items() if task.done is not None}
    if not done or not history.workers:
        msg = f"{path}: {'no task was done' if history.workers else 'no worker was connected'}, so there is nothing to simulate"
        raise WorkloadError(msg)
    begin = min(task.submitted.t for task in done.values())
    keys = {number: task.outputs[0] if task.outputs else f"task {number}" for number, task in done.items()}
    keys_of_outputs = {name: keys[number] for number, task in done.items() for name in task.outputs}
    files: dict[str, SimulatedFile] = {}
    jobs = []
    for number, task in done.items():
        said, last = task.submitted, task.done
        assert last is not None
        inputs = [keys_of_outputs.get(name, name) for name in (*said.inputs, *said.shared)]
        inputs = [name for name in inputs if name != keys[number]]
        for name in inputs:
            if name not in files and name not in keys_of_outputs:
                known = history.file_history(name)
                files[name] = SimulatedFile(
                    name, max(known.size, 0), MANAGER if known.at_manager else STORAGE
                )
        size = sum(max(history.file_history(name).size, 0) for name in task.outputs)
        jobs.append(
            SimulatedTask(
                keys[number],
                tuple(inputs),
                last.wall_s or 0.0,
                size,
                library=said.library,
                category=said.category,
                cores=last.cores or 1.0,
                wanted=bool(said.wanted),
                submitted_s=said.t - begin,
            )
        )
    end = max(task.done.ended or 0.0 for task in done.values() if task.done is not None)
    return RecordedRun(
        Workload(jobs, files.values()),
        _most_common_cluster(history),
        Failures(worker_lifetimes=_worker_lifetimes(history, begin)),
        end - begin,
        len(history.tasks) - len(done),
    )


def _most_common_cluster(history: History) -> Cluster:
    hellos = [worker.joined for worker in history.workers.values()]
    (cores, memory_mb, disk_mb), _count = Counter(
        (x.cores, x.memory_mb, x.disk_mb) for x in hellos
    ).most_common(1)[0]
    return Cluster(len(hellos), cores, memory_mb or UNKNOWN_MB, disk_mb or UNKNOWN_MB)


def _worker_lifetimes(history: History, begin: float) -> tuple[tuple[float, float], ...]:
    """When each worker came and went, in seconds after the first submission; infinite for those that were there at the end."""
    lives = []
    for worker in history.workers.values():
        end = float("inf") if worker.lost is None else worker.lost.t - begin
        if end > 0:
            lives.append((max(0.0, worker.joined.t - begin), end))
    return tuple(lives)
