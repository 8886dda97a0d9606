"""``python -m benchmarks.ladder``."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from benchmarks import machine
from benchmarks.ladder import study
from benchmarks.ladder.measure import measure
from benchmarks.ladder.stacks import PAPER, PUBLISHED, QUICK

WIDTH = 185


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A few hundred tasks: to see that it works.")
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds of each measurement."
)
@click.option("--seed", default=0, show_default=True, help="Of the durations of the tasks.")
@click.option(
    "--json", "record", type=click.Path(dir_okay=False, path_type=Path), help="Write everything here."
)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw it here: .png, .svg or .pdf."
)
def main(quick: bool, rounds: int, seed: int, record: Path | None, plot: Path | None) -> None:
    """Simulate the four stacks of a published analysis with the costs of this code, which are measured first.

    benchmarks/ladder/README.md says what is assumed and what comes out.
    """
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        msg = "matplotlib draws it, and is not installed: pip install matplotlib, or leave --plot out"
        raise click.UsageError(msg)
    here = machine.describe()
    scale = QUICK if quick else PUBLISHED
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    with tempfile.TemporaryDirectory(prefix="vine-bench-") as folder:
        # all that is written on the way, the secret and what matplotlib caches among it, goes with the folder
        os.environ["TMPDIR"] = tempfile.tempdir = os.environ["XDG_CONFIG_HOME"] = folder
        with Console(stderr=True).status("measuring what this code costs") as status:
            measured = measure(rounds)
            rungs = study.climb(measured, scale, seed, status.update)
        if plot is not None:
            study.draw(rungs, scale, plot)
    console.print(study.table(rungs, scale))
    console.print(study.numbers(measured))
    console.print(f"Published: {PAPER}.")
    console.print(machine.line(here))
    if record is not None:
        record.write_text(json.dumps(study.record(rungs, measured, scale, here), indent=1) + "\n")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.ladder")
