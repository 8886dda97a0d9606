"""The command ``python -m vinecore.simulate``."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from vinecore.simulate.generators import GRAPHS, generate
from vinecore.simulate.replay import RecordedRun, load_recording
from vinecore.simulate.settings import Cluster, Costs, Failures, Storage
from vinecore.simulate.simulation import SimulationStalled, simulate
from vinecore.simulate.workload import Workload, load

WIDTH = 120  # of a table that is written to a file or a pipe
EPILOG = """\b
Examples:
  python -m vinecore.simulate --graph tree --tasks 10000 --seconds 2 --workers 50 --cores 8
  python -m vinecore.simulate --journal vine-run-info --workers 100
  python -m vinecore.simulate --workload mine.json --losses-per-hour 2 --replaced-after 60 --seed 7 --json -

\b
mine.json is as:
  {"files": {"data.root": {"size": 2e9, "at": "storage"}},
   "tasks": [{"key": "a", "inputs": ["data.root"], "seconds": 4.0, "size": 1e6, "library": "analysis"},
             {"key": "sum", "inputs": ["a"], "seconds": 0.1, "size": 1e6}]}

Of a task only the key is needed; "library" is the library whose function it calls, without it the task gets a process of its own; "reads" is what it
streams from the storage while it runs. Times are in seconds, sizes in bytes.
"""
MACHINE_OPTIONS = ("workers", "cores", "memory_mb", "disk_mb")
WORKER_OPTIONS = {"workers", "losses_per_hour", "replaced_after", "arrive"}
"""Options that make the workers others than those of a journal."""
CLUSTER, COSTS, STORAGE = Cluster(), Costs(), Storage()
MAX_AMOUNT = 1e15
UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


class Amount(click.ParamType):  # type: ignore[type-arg]
    """A number with a unit: 10k, 1.5GB.

    Parameters
    ----------
    what
        What it counts, as it is said of one that makes no sense.
    positive
        Whether it has to be more than 0.
    infinite
        What infinity means, where that makes sense.
    """

    name = "number"

    def __init__(self, what: str, *, positive: bool = False, infinite: str = "") -> None:
        self._positive, self._infinite = positive, infinite
        least = "more than 0" if positive else "0 or more"
        example = "0.5 or 60" if what.startswith(("second", "losses", "sigma")) else "500M, 2e9 or 2GB"
        self._allowed = (
            f"{what}: a number of {least}, such as {example}{f', or inf for {infinite}' if infinite else ''}"
        )

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Understand what the user has written."""
        said = str(value).strip().lower().removesuffix("b")
        unit = UNITS.get(said[-1:], 1.0)
        try:
            number = float(said[:-1] if unit > 1 else said) * unit
        except ValueError:
            number = math.nan
        fits = number > 0 if self._positive else number >= 0
        # a finite number with which times or sizes would overflow is of no more use than infinity
        if not fits or (number > MAX_AMOUNT and not (self._infinite and number == math.inf)):
            self.fail(f"{str(value)!r} is not {self._allowed}", param, ctx)
        return number


COUNT = click.IntRange(1, 10**8)
SECONDS, BYTES = Amount("seconds"), Amount("bytes")
RATE = Amount("bytes per second", positive=True, infinite="no limit")


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}, epilog=EPILOG
)
@click.option(
    "--workload",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run this description in JSON.",
)
@click.option(
    "--journal",
    type=click.Path(exists=True, path_type=Path),
    help="Run what this journal of a run says, or the last one in this run_info_path.",
)
@click.option(
    "--graph", type=click.Choice([*GRAPHS]), help="Run a graph that is generated. The default is a tree."
)
@click.option("--tasks", default=1000, show_default=True, type=COUNT, help="Of the graph: tasks.")
@click.option(
    "--seconds", default=1.0, show_default=True, type=SECONDS, help="Of the graph: how long a task computes."
)
@click.option(
    "--spread",
    default=0.0,
    show_default=True,
    type=Amount("sigma of a lognormal"),
    help="Of the graph: how much that differs (sigma of a lognormal).",
)
@click.option("--size", default=1e6, show_default="1M", type=BYTES, help="Of the graph: bytes of a result.")
@click.option(
    "--reads",
    default=0.0,
    show_default=True,
    type=BYTES,
    help="Of the graph: bytes the first tasks read from the storage.",
)
@click.option(
    "--fan-in",
    default=8,
    show_default=True,
    type=COUNT,
    help="Of the graph: results that are merged; chains.",
)
@click.option(
    "--mode",
    default="calls",
    show_default=True,
    type=click.Choice(["calls", "tasks"]),
    help="Of the graph: function calls, or a process each.",
)
@click.option("--workers", default=CLUSTER.workers, show_default=True, type=COUNT, help="Workers.")
@click.option("--cores", default=CLUSTER.cores, show_default=True, type=COUNT, help="Cores of each.")
@click.option(
    "--memory-mb",
    default=CLUSTER.memory_mb,
    show_default=True,
    type=COUNT,
    help="Memory of each, in MB.",
)
@click.option(
    "--disk-mb",
    default=CLUSTER.disk_mb,
    show_default=True,
    type=COUNT,
    help="Disk of each, in MB.",
)
@click.option(
    "--bandwidth",
    default=CLUSTER.bandwidth,
    show_default="1.25G",
    type=RATE,
    help="Of a worker's link, bytes/s each way.",
)
@click.option(
    "--manager-bandwidth",
    default=CLUSTER.manager_bandwidth,
    show_default="1.25G",
    type=RATE,
    help="Of the manager's link, shared by all workers.",
)
@click.option(
    "--latency",
    default=CLUSTER.latency_s,
    show_default=True,
    type=SECONDS,
    help="Seconds a message is under way.",
)
@click.option(
    "--storage-bandwidth",
    default=STORAGE.bandwidth,
    show_default="5G",
    type=RATE,
    help="Of the storage, for all readers together.",
)
@click.option(
    "--storage-stream",
    default=STORAGE.stream,
    show_default=True,
    type=RATE,
    help="Of the storage, for one reader at most.",
)
@click.option(
    "--peer-transfers/--no-peer-transfers",
    default=True,
    show_default=True,
    help="Workers fetch from each other.",
)
@click.option("--results-to-manager", is_flag=True, help="Every result is brought to the manager.")
@click.option(
    "--scheduler",
    default=CLUSTER.scheduler,
    show_default=True,
    help="files, time, rand, worst, disk or fcfs.",
)
@click.option(
    "--copies",
    default=1,
    show_default=True,
    type=COUNT,
    help="On how many workers every result shall be.",
)
@click.option(
    "--turn",
    default=COSTS.loop_iteration_s,
    show_default=True,
    type=SECONDS,
    help="Seconds of the manager for a turn of its loop.",
)
@click.option(
    "--event",
    default=COSTS.event_s,
    show_default=True,
    type=SECONDS,
    help="Seconds of the manager for an event.",
)
@click.option(
    "--message",
    default=COSTS.message_s,
    show_default=True,
    type=SECONDS,
    help="Seconds of the manager for a message to a worker.",
)
@click.option(
    "--interpreter",
    default=COSTS.interpreter_s,
    show_default=True,
    type=SECONDS,
    help="Seconds until an interpreter has started.",
)
@click.option(
    "--imports",
    default=COSTS.imports_s,
    show_default=True,
    type=SECONDS,
    help="Seconds until the tasks' modules are imported.",
)
@click.option(
    "--warm/--cold",
    default=COSTS.warm_fork,
    show_default=True,
    help="Tasks with a process of their own: forked from a warm Python, or not.",
)
@click.option(
    "--losses-per-hour",
    default=0.0,
    show_default=True,
    type=Amount("losses per hour"),
    help="How often each worker is lost.",
)
@click.option(
    "--replaced-after",
    default=math.inf,
    show_default="never",
    type=Amount("seconds", infinite="never"),
    help="Seconds until another worker comes instead.",
)
@click.option(
    "--arrive", default=0.0, show_default=True, type=SECONDS, help="Seconds over which workers arrive."
)
@click.option(
    "--retries",
    default=5,
    show_default=True,
    type=click.IntRange(0),
    help="Losses of its worker that a task survives.",
)
@click.option("--seed", default=0, show_default=True, type=int, help="Of all that is drawn.")
@click.option(
    "--json",
    "record",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the report here as JSON; - for the standard output.",
)
@click.pass_context
def main(
    ctx: click.Context,
    /,
    workload: Path | None,
    journal: Path | None,
    graph: str | None,
    record: str | None,
    retries: int,
    seed: int,
    **o: Any,
) -> None:
    """Simulate a run: the real scheduler of a manager and the real state machines of its workers, with simulated machines, links, clock and failures.

    What it reports: makespan, utilisation, bytes moved, what had to run again, and what the scheduler costs. The defaults of what things cost were
    measured on this code; see docs/simulate.md.

    A journal says also on what machines it ran, and when they came and went; options for these are a question: what if it had been otherwise?
    """
    if sum(source is not None for source in (workload, journal, graph)) > 1:
        msg = "--workload, --journal and --graph: give one of them"
        raise click.UsageError(msg)
    given = {name for name in o if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    recording: RecordedRun | None = None
    try:
        if journal is not None:
            recording = load_recording(journal)
            what = recording.workload
            o |= {name: getattr(recording.cluster, name) for name in MACHINE_OPTIONS if name not in given}
        else:
            what = load(workload) if workload is not None else _generate_workload(graph or "tree", seed, o)
        cluster, costs, failures = _make_settings(o)
        if recording is not None and not given & WORKER_OPTIONS:
            failures = recording.failures
        report = simulate(what, cluster, costs, failures, retries=retries, seed=seed)
    except (OSError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    except SimulationStalled as error:
        raise click.ClickException(str(error)) from None
    title = f"{workload or journal or graph or 'tree'}: {report.tasks:,} tasks on {cluster.workers:,} workers of {cluster.cores} cores, simulated"
    if record is not None:
        really = {"recorded_s": recording.makespan_s, "left_out": recording.left_out} if recording else {}
        text = json.dumps({**report.record(), **really}, indent=1)
        click.echo(text) if record == "-" else Path(record).write_text(text + "\n")
    if record != "-":
        Console(width=None if sys.stdout.isatty() else WIDTH).print(report.table(title))
        if recording is not None:
            click.echo(
                f"The run itself took {recording.makespan_s:,.3f} s; tasks that it did not do: {recording.left_out:,}."
            )
    if report.outcome != "success":
        msg = f"the run has failed: {report.outcome}: {report.reason}"
        raise click.ClickException(msg)


def _generate_workload(graph: str, seed: int, o: dict[str, Any]) -> Workload:
    library = "library" if o["mode"] == "calls" else ""
    sizes = {"size": o["size"], "reads": o["reads"], "spread": o["spread"], "fan_in": o["fan_in"]}
    return generate(graph, o["tasks"], seconds=o["seconds"], library=library, seed=seed, **sizes)


def _make_settings(o: dict[str, Any]) -> tuple[Cluster, Costs, Failures]:
    cluster = Cluster(
        o["workers"], o["cores"], o["memory_mb"], o["disk_mb"], o["bandwidth"], o["manager_bandwidth"], o["latency"],
        Storage(o["storage_bandwidth"], o["storage_stream"]), o["peer_transfers"], o["results_to_manager"], o["scheduler"], o["copies"],
    )  # fmt: skip
    costs = Costs(
        loop_iteration_s=o["turn"],
        event_s=o["event"],
        message_s=o["message"],
        interpreter_s=o["interpreter"],
        imports_s=o["imports"],
        warm_fork=o["warm"],
    )
    failures = Failures(o["losses_per_hour"], o["replaced_after"], arrival_window_s=o["arrive"])
    return cluster, costs, failures
