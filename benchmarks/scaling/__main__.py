"""``python -m benchmarks.scaling``."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks import machine
from benchmarks.scaling import report
from benchmarks.scaling.cell import INTERFACES, Cell
from benchmarks.scaling.shapes import SHAPES

TASKS, WORKERS = "1e4,1e5,1e6", "10,100,1000"
QUICK_TASKS, QUICK_WORKERS = "1e3,4e3", "4,40"
# how often cells with at least so many tasks are measured: the smaller, the more of a moment is what they show
MEASURED = {500_000: 1, 50_000: 3, 0: 5}
WIDTH = 150
CALMEST = ("loop_us", "user_us", "connect_s", "first_s", "away_s")  # what other programs can only make larger
NOTE = (
    "Manager: CPU time of the thread that decides and talks to the workers. Submitting: CPU time of the thread that "
    "{submitting}. Memory: the most there is while all vertices wait, or while they run."
)
SUBMITTING = {
    "engine": "makes the tasks and hands them over",
    "get": "calls get: it orders and compiles the graph",
}


def _amounts(_context: Any, _parameter: Any, text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(float(part)) for part in text.split(",")]
    except ValueError:
        msg = f"{text!r}: use numbers with commas between them, such as 1e4,1e5"
        raise click.BadParameter(msg) from None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--tasks", callback=_amounts, metavar="N,N,...", help=f"Tasks of each cell ({TASKS}).")
@click.option("--workers", callback=_amounts, metavar="N,N,...", help=f"Simulated workers ({WORKERS}).")
@click.option(
    "--shape", default="tree", show_default=True, type=click.Choice([*SHAPES]), help="Of the graph."
)
@click.option("--interface", default="engine", show_default=True, type=click.Choice([*INTERFACES, "scheduler"]), help="How tasks are submitted.")  # fmt: skip
@click.option("--cores", default=4, show_default=True, type=click.IntRange(1), help="Of each worker.")
@click.option("--result-bytes", default=20_000, show_default=True, type=click.IntRange(0), help="Size of a result.")  # fmt: skip
@click.option("--call-s", default=0.02, show_default=True, type=click.FloatRange(0), help="What workers say a call takes.")  # fmt: skip
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1), help="Turns of the grid, in which small cells come three and five times; the calmest counts.")  # fmt: skip
@click.option("--quick", is_flag=True, help=f"Small: {QUICK_TASKS} tasks, {QUICK_WORKERS} workers.")
@click.option("--json", "record", type=click.Path(dir_okay=False, path_type=Path), help="Write all that was measured here.")  # fmt: skip
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw it here: .png, .svg or .pdf.")  # fmt: skip
def main(  # noqa: PLR0917 - one for each option
    tasks: list[int] | None,
    workers: list[int] | None,
    shape: str,
    interface: str,
    cores: int,
    result_bytes: int,
    call_s: float,
    rounds: int,
    quick: bool,
    record: Path | None,
    plot: Path | None,
) -> None:
    """Measure what the manager costs as tasks and workers grow.

    The manager is a real one, with real sockets; the workers are simulated. The largest cells take two minutes each and 4 GB of memory.
    """
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        msg = "matplotlib draws it, and is not installed: pip install matplotlib, or leave --plot out"
        raise click.UsageError(msg)
    here = machine.describe()
    grid = itertools.product(
        tasks or _amounts(None, None, QUICK_TASKS if quick else TASKS) or (),
        workers or _amounts(None, None, QUICK_WORKERS if quick else WORKERS) or (),
    )
    cells = [Cell(t, w, shape, interface, cores, result_bytes, call_s) for t, w in grid]
    rows: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
    with Console(stderr=True).status("starting") as status:
        turns = {cell: rounds * (1 if quick else _turns(cell)) for cell in cells}
        for number in range(max(turns.values())):
            for cell in [cell for cell in cells if number < turns[cell]]:
                status.update(f"round {number + 1}: {cell.tasks:,} tasks, {cell.workers:,} workers")
                rows[cell].append(_run(cell))
    calmest = [_calmest(measured) for measured in rows.values()]
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(report.table(calmest))
    console.print(machine.line(here))
    if interface != "scheduler":
        console.print(NOTE.format(submitting=SUBMITTING[interface]))
    if record is not None:
        cells_ = [{"cell": cell._asdict(), "rounds": measured} for cell, measured in rows.items()]
        record.write_text(json.dumps({"machine": here, "cells": cells_}, indent=1) + "\n")
    if plot is not None:
        report.plot(calmest, plot)


def _turns(cell: Cell) -> int:
    return next(turns for tasks, turns in MEASURED.items() if cell.tasks >= tasks)


def _run(cell: Cell) -> dict[str, Any]:
    """Measure one cell, in a process of its own."""
    module = "scheduler" if cell.interface == "scheduler" else "cell"
    command = [sys.executable, "-m", f"benchmarks.scaling.{module}"]
    with tempfile.TemporaryDirectory(prefix="vine-bench-") as folder:  # the secret is made there, too
        environment = {**os.environ, "TMPDIR": folder, "XDG_CONFIG_HOME": folder}
        done = subprocess.run(
            command, env=environment, input=json.dumps(cell._asdict()) + "\n", stdout=subprocess.PIPE, text=True, check=False
        )  # fmt: skip
    if done.returncode:
        msg = (
            f"{cell.tasks:,} tasks, {cell.workers:,} workers: the process that measures has failed, see above"
        )
        raise click.ClickException(msg)
    measured = json.loads(done.stdout)
    if "memory" in measured:
        measured["memory_per_vertex"] = measured["memory"] / measured["tasks"]
    return {**measured, "tasks": cell.tasks, "vertices": measured["tasks"], "workers": cell.workers}


def _calmest(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Each quantity of the round in which least else was going on."""
    best = dict(rounds[0])
    for name in CALMEST:
        if name in best:
            best[name] = min(measured[name] for measured in rounds)
    for name in ("rate", "memory_per_vertex", "lost"):
        if name in best:
            best[name] = max(measured[name] for measured in rounds)
    return best


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.scaling")
