"""The command ``python -m daskvine.demo``: run the ADL benchmark on this machine and check every bin.

It writes a data set, starts a manager with a local worker, computes the eight queries, compares them with a
calculation that uses no dask, prints a table and draws the histograms.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import awkward
import click
import coffea.nanoevents
import dask_awkward
import hist.dask
import numpy as np
import uproot
from rich.console import Console

from daskvine.demo.nanoaod import write_dataset
from daskvine.demo.plots import save_plots
from daskvine.demo.queries import open_events
from daskvine.demo.reference import compute_reference
from daskvine.demo.runner import QueryResult, differing, result_table, run_queries
from daskvine.manager import count_available_cores

MODULES = (awkward, coffea.nanoevents, dask_awkward, hist.dask, np, uproot)
"""Imported once on each worker, before the first vertex."""


def _compute_on_vine(events: Any, cores: int, console: Console) -> list[QueryResult]:
    # Imported here so that the rest of the demo can be used with any other scheduler.
    from daskvine import DaskVine

    results = []
    with DaskVine.local(cores=cores) as manager:
        computed = run_queries(
            manager.get,
            events,
            count_vertices=lambda: int(manager.last_run.vertices),
            task_mode="function-calls",
            lazy_transfers=True,
            import_modules=list(MODULES),
            progress_disable=True,
        )
        with console.status("computing"):
            for result in computed:
                console.print(f"{result.query.name} {result.seconds:.2f} s")
                results.append(result)
    return results


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--files", default=4, show_default=True, type=click.IntRange(1), help="Files of the data set.")
@click.option(
    "--events", default=50_000, show_default=True, type=click.IntRange(1), help="Events in each file."
)
@click.option(
    "--steps", default=4, show_default=True, type=click.IntRange(1), help="Partitions of each file."
)
@click.option("--cores", type=click.IntRange(1), help="Cores of the local worker, all by default.")
@click.option(
    "--folder",
    default=Path("demo-output"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where data and plots go.",
)
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw the histograms.")
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Compare each bin with eager awkward."
)
def main(
    files: int, events: int, steps: int, cores: int | None, folder: Path, plots: bool, check: bool
) -> None:
    """Run the eight queries of the ADL benchmark with daskvine on this machine."""
    console = Console()
    with console.status("writing the data set"):
        paths = write_dataset(folder / "data", files, events)
    console.print(f"{files} files of {events:,} events in {folder / 'data'}, {files * steps} partitions")
    results = _compute_on_vine(open_events(paths, steps), cores or count_available_cores(), console)
    with console.status("computing again without dask"):
        references = compute_reference(paths) if check else {}
    console.print(result_table(results, references))
    if plots:
        drawn = save_plots({result.query.name: result.histograms for result in results}, folder / "plots")
        console.print(f"{len(drawn)} plots in {folder / 'plots'}")
    if wrong := differing(results, references):
        console.print(f"[bold red]differs from the calculation without dask: {', '.join(wrong)}[/bold red]")
        sys.exit(1)
