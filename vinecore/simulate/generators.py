"""Workloads that are generated: trees, independent tasks, chains and random graphs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from vinecore.simulate.workload import SimulatedTask, Workload, WorkloadError


class _Distribution:
    """Durations and sizes that spread around a mean."""

    def __init__(self, seed: int, spread: float) -> None:
        self.random, self._spread = random.Random(seed), spread

    def around(self, mean: float) -> float:
        """Draw from a lognormal distribution with this mean."""
        if not self._spread:
            return mean
        return mean * self.random.lognormvariate(-(self._spread**2) / 2, self._spread)


def generate(
    graph: str = "tree",
    tasks: int = 1000,
    *,
    seconds: float = 1.0,
    reduce_seconds: float | None = None,
    size: float = 1e6,
    reads: float = 0.0,
    fan_in: int = 8,
    spread: float = 0.0,
    library: str = "library",
    seed: int = 0,
) -> Workload:
    """Make a workload.

    Parameters
    ----------
    graph
        "tree", tasks whose results are merged ``fan_in`` at a time until one is left, in the order in which dask would run it: depth first;
        "independent", tasks that read nothing of each other, and whose results are all wanted;
        "chains", ``fan_in`` chains side by side; "random", tasks that read up to ``fan_in`` of those before them.
    tasks
        How many, all together; a tree may have one less.
    seconds, reduce_seconds
        How long each computes; merges of a tree, if that is something else.
    size
        Bytes of each result.
    reads
        Bytes that each task at the beginning of the graph streams from the storage.
    fan_in
        How many results are merged at a time.
    spread
        Standard deviation of the logarithm of the seconds; 0 if all are the same.
    library
        The library that is called; "" for a process for each task.
    seed
        Of what is drawn.

    Raises
    ------
    WorkloadError
        There is no such graph, or a number means nothing.
    """
    if graph not in GRAPHS:
        msg = f"graph={graph!r}: there are {', '.join(GRAPHS)}"
        raise WorkloadError(msg)
    if tasks < 1 or fan_in < 1 + (graph == "tree"):
        msg = f"tasks={tasks}, fan_in={fan_in}: there has to be a task, and a tree merges two or more"
        raise WorkloadError(msg)
    draw = _Distribution(seed, spread)
    merge_seconds = seconds if reduce_seconds is None else reduce_seconds

    def job(number: int, inputs: Iterable[str] = (), *, merge: bool = False) -> SimulatedTask:
        inputs = tuple(inputs)
        duration = draw.around(merge_seconds if merge else seconds)
        kind = "merge" if merge else "map"
        return SimulatedTask(
            f"{kind}-{number}", inputs, duration, int(size), 0 if inputs else int(reads), library, kind
        )

    return Workload(GRAPHS[graph](tasks, fan_in, job, draw.random))


def _make_tree(
    tasks: int, fan_in: int, job: Callable[..., SimulatedTask], _random: random.Random
) -> list[SimulatedTask]:
    leaves = tasks
    while leaves > 1 and leaves + -(-(leaves - 1) // (fan_in - 1)) > tasks:  # so many merges does it take
        leaves -= 1
    jobs: list[SimulatedTask] = []
    levels: list[list[str]] = [[]]  # results that wait to be merged, of each height

    def merge(height: int) -> None:
        made = job(len(jobs), levels[height], merge=True)
        jobs.append(made)
        levels[height] = []
        if len(levels) == height + 1:
            levels.append([])
        levels[height + 1].append(made.key)

    for _ in range(leaves):
        jobs.append(job(len(jobs)))
        levels[0].append(jobs[-1].key)
        height = 0
        while len(levels[height]) == fan_in:
            merge(height)
            height += 1
    rest = [key for level in levels for key in level]
    while len(rest) > 1:
        made = job(len(jobs), rest[:fan_in], merge=True)
        jobs.append(made)
        rest = [*rest[fan_in:], made.key]
    return jobs


def _make_independent(
    tasks: int, _fan_in: int, job: Callable[..., SimulatedTask], _random: random.Random
) -> list[SimulatedTask]:
    return [job(number) for number in range(tasks)]


def _make_chains(
    tasks: int, fan_in: int, job: Callable[..., SimulatedTask], _random: random.Random
) -> list[SimulatedTask]:
    jobs: list[SimulatedTask] = []
    for number in range(tasks):
        jobs.append(job(number, [jobs[number - fan_in].key] if number >= fan_in else []))
    return jobs


def _make_random_graph(
    tasks: int, fan_in: int, job: Callable[..., SimulatedTask], chance: random.Random
) -> list[SimulatedTask]:
    jobs: list[SimulatedTask] = []
    for number in range(tasks):
        count = min(number, chance.randint(0, fan_in))
        recent = range(max(0, number - 10 * fan_in), number)
        jobs.append(job(number, [jobs[n].key for n in chance.sample(recent, min(count, len(recent)))]))
    return jobs


GRAPHS: dict[str, Callable[..., list[SimulatedTask]]] = {
    "tree": _make_tree, "independent": _make_independent, "chains": _make_chains, "random": _make_random_graph,
}  # fmt: skip
"""The graphs that `generate` knows."""
