"""Pure questions to the scheduler's records, for other threads to ask through `ManagerServer.query`.

Callers outside of the scheduler read its records through these functions only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vinecore.scheduler.transitions import ASSIGNED, RETRIEVING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vinecore.scheduler.scheduler import Scheduler


class GraphStatus(NamedTuple):
    """How far the computation of a graph is.

    Attributes
    ----------
    total : int
        Tasks that the graph has.
    done, running, unfinished : int
        Tasks that are done, that run on workers, and that were submitted and are not done.
    deferred : int
        Tasks that count as done though they have not run, because nothing needs their results.
    recomputed : int
        Tasks that ran again because their results were lost.
    submitted : bool
        Whether all tasks have been submitted.
    workers : int
        Workers that are connected to the manager.
    moved_bytes : int
        Bytes that have moved between workers and manager since the manager started.
    """

    total: int
    done: int
    running: int
    unfinished: int
    deferred: int
    recomputed: int
    submitted: bool
    workers: int
    moved_bytes: int


def graph_status(scheduler: Scheduler, number: int, total: int) -> GraphStatus:
    """Return how far a graph is; one that is not known any more is done."""
    workers, moved_bytes = len(scheduler.state.workers), scheduler.state.moved_bytes
    graph = scheduler.state.graphs.get(number)
    if graph is None:
        return GraphStatus(total, total, 0, 0, 0, 0, True, workers, moved_bytes)
    return GraphStatus(
        total,
        graph.done,
        graph.running,
        graph.unfinished,
        graph.deferred,
        graph.recomputed,
        graph.submitted,
        workers,
        moved_bytes,
    )


def count_replicas(scheduler: Scheduler, name: str) -> int:
    """Return how many workers have a file, verified or not."""
    file = scheduler.state.files.get(name)
    return 0 if file is None else len(file.replicas)


def count_workers(scheduler: Scheduler) -> int:
    """Return how many workers are connected."""
    return len(scheduler.state.workers)


def update_interval_s(scheduler: Scheduler) -> float:
    """Return the interval of the reports to the registry and to catalogs."""
    return scheduler.state.tuning.update_interval


def workers_of_host(scheduler: Scheduler, host: str) -> int:
    """Return how many workers of a host are connected."""
    return sum(host in (worker.name, worker.host) for worker in scheduler.state.workers.values())


def workers_by_load(scheduler: Scheduler) -> list[int]:
    """Return the numbers of the workers that stay, those with the fewest tasks first."""
    workers = [worker for worker in scheduler.state.workers.values() if not worker.draining]
    return [worker.id for worker in sorted(workers, key=lambda worker: len(worker.tasks))]


def count_cancelled_tasks(scheduler: Scheduler) -> int:
    """Return how many tasks have been cancelled so far."""
    return scheduler.state.counters.tasks_cancelled


def summarize_workers(scheduler: Scheduler) -> list[dict[str, Any]]:
    """Return the resources, and the numbers of tasks and files, of each connected worker."""
    return [
        {
            "id": worker.id,
            "host": worker.name,
            "total": worker.total._asdict(),
            "free": worker.free._asdict(),
            "tasks": len(worker.tasks),
            "files": len(worker.files),
            "libraries": {name: instance.slots for name, instance in worker.libraries.items()},
        }
        for worker in scheduler.state.workers.values()
    ]


def is_worker_count_expected(scheduler: Scheduler) -> bool:
    """Return whether the scheduler knows how many workers there will be at most."""
    return scheduler.state.expected_workers is not None


def find_running(scheduler: Scheduler, numbers: Iterable[int]) -> set[int]:
    """Return which of these tasks run on a worker, or have run and are bringing their results."""
    tasks = scheduler.state.tasks
    return {
        number
        for number in numbers
        if (task := tasks.get(number)) is not None
        and (task.state == RETRIEVING or (task.state == ASSIGNED and not task.missing_inputs))
    }


def await_earlier_events(_scheduler: Scheduler) -> None:
    """Return nothing: the answer comes when all events posted before have been handled."""
