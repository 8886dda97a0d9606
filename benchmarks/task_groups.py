"""``python -m benchmarks.task_groups``: sequences of tasks that hand a file on, with and without grouping.

Each step of a sequence is a command that reads the file of the step before and writes one of the same size; the
files stay on the workers. With grouping the steps of a sequence run on one worker: the default rule sends a task
to the worker that has most bytes of its inputs. Without grouping each task goes to a random worker, and its input
is moved there. All tasks are submitted before the first one ends.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from vinecore import Factory, File, Manager, Task

MB = 1_000_000
WIDTH = 120
WAIT_TIMEOUT_S = 600


class Setting(NamedTuple):
    """One way of placing tasks.

    Attributes
    ----------
    title : str
        Its name in the table.
    rule : str
        The rule of `Manager.set_scheduler`.
    tuned : tuple of (str, float)
        Values for `Manager.tune`.
    """

    title: str
    rule: str
    tuned: tuple[tuple[str, float], ...] = ()


SETTINGS = (
    Setting("grouped by data, the default", "files"),
    Setting("random workers, task-groups", "rand", (("task-groups", 1),)),
    Setting("random workers, no grouping", "rand"),
)


class Measured(NamedTuple):
    """What one run took: seconds from the first submission to the last end, and bytes between workers."""

    seconds: float
    moved_mb: float


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--sequences", default=20, show_default=True, type=click.IntRange(1), help="Sequences.")
@click.option("--steps", default=30, show_default=True, type=click.IntRange(2), help="Tasks of a sequence.")
@click.option("--mb", "sizes", multiple=True, default=(0, 50), show_default=True, type=click.IntRange(0),
              help="Size of the file that each step hands on; may be repeated.")  # fmt: skip
@click.option("--workers", default=4, show_default=True, type=click.IntRange(1), help="Workers of one core.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of each setting.")
def main(sequences: int, steps: int, sizes: tuple[int, ...], workers: int, rounds: int) -> None:
    """Measure sequences of tasks with and without grouping."""
    table = Table(
        title=f"{sequences} sequences of {steps} tasks on {workers} workers of one core, medians of {rounds}",
        title_justify="left",
    )
    table.add_column("placement")
    for size in sizes:
        table.add_column(f"{size} MB: s", justify="right")
        table.add_column("moved MB", justify="right")
    runs: dict[tuple[int, Setting], list[Measured]] = {}
    for _ in range(rounds):
        for size in sizes:
            for setting in SETTINGS:
                measured = measure(setting, sequences, steps, size, workers)
                runs.setdefault((size, setting), []).append(measured)
    for setting in SETTINGS:
        cells = []
        for size in sizes:
            seconds, moved = zip(*runs[size, setting], strict=True)
            cells += [f"{statistics.median(seconds):.2f}", f"{statistics.median(moved):.0f}"]
        table.add_row(setting.title, *cells)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def measure(setting: Setting, sequences: int, steps: int, size: int, workers: int) -> Measured:
    """Run all sequences once, with workers of their own."""
    with tempfile.TemporaryDirectory(prefix="vine-bench-") as folder, Manager(port=0) as m:
        m.set_scheduler(setting.rule)
        for name, value in setting.tuned:
            m.tune(name, value)
        factory = Factory("local", manager=m, workspace=Path(folder), cores=1, memory=1000, disk=20_000,
                          min_workers=workers, max_workers=workers)  # fmt: skip
        with factory:
            m.wait_for_workers(workers)
            start = time.monotonic()
            inputs: dict[int, File] = {}
            for _ in range(sequences):
                inputs.update(submit_sequence(m, steps, size))
            for done in range(sequences * steps):
                task = m.wait(WAIT_TIMEOUT_S)
                if task is None or not task.successful():
                    msg = f"task {done} of {sequences * steps} failed or did not end: {task}"
                    raise RuntimeError(msg)
                if task.id in inputs:
                    m.undeclare_file(inputs.pop(task.id))
            seconds = time.monotonic() - start
            with m.open_graph("bytes between workers") as graph:
                moved = graph.status().moved_bytes
    return Measured(seconds, moved / MB)


def submit_sequence(m: Manager, steps: int, size: int) -> Iterator[tuple[int, File]]:
    """Submit the steps of one sequence; yield the number of each task with the file that it reads."""
    previous = None
    for _ in range(steps):
        command = "cp in out" if previous else f"head -c {size * MB} /dev/zero > out"
        task = Task(command, cores=1, memory=100, disk=2 * size + 10)
        result = m.declare_temp()
        task.add_output(result, "out")
        if previous is None:
            m.submit(task)
        else:
            task.add_input(previous, "in")
            yield m.submit(task), previous
        previous = result


if __name__ == "__main__":
    main()
