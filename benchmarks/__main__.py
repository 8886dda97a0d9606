"""``python -m benchmarks``."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from benchmarks import contest, machine, table
from benchmarks.cases import CASES, Case, chosen
from benchmarks.contenders import CONTENDERS, ContenderFailed
from benchmarks.sizes import FULL, QUICK, Size

WIDTH = 185  # of a table that is written to a file or a pipe
NAMES = ", ".join((*(case.name for case in CASES), "Q1 to Q8"))
WITHOUT_HEP = "The ADL queries need the HEP stack, which is not installed: pip install 'daskvine[hep]'"
NOTE = (
    "A ratio is how many times as fast daskvine is; of the ADL queries, the part of the other's time. "
    "Bare: no scheduler, only the processes (calls), a sendfile from one to the other (transfers), plain pickle (load), "
    "or each of them with its share of the files (ADL). "
    "The machine may be shared: what else runs on it changes the numbers, and leaves less of a core to "
    "those that use two; bare says what was to be had ('nor bare': too little to judge by). "
    "distributed does a fifth of the calls, vertices and hops."
)
TOO_SMALL = "These amounts are too small to judge budgets by."


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Small amounts: for a look, not for a judgement.")
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of every contender."
)
@click.option(
    "--only", multiple=True, metavar="NAME", help=f"Only this row or group; may be repeated. {NAMES}."
)
@click.option("--without", multiple=True, type=click.Choice([*CONTENDERS]), help="Leave a contender out.")
@click.option("--files", type=click.IntRange(1), help=f"Files of the ADL queries ({FULL.files}).")
@click.option("--events", type=click.IntRange(1), help=f"Events in each file ({FULL.events:,}).")
@click.option("--steps", type=click.IntRange(1), help=f"Partitions of each file ({FULL.steps}).")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the files here, and use them again.",
)
@click.option(
    "--json", "record", type=click.Path(dir_okay=False, path_type=Path), help="Write all measured times here."
)
def main(  # noqa: PLR0917 - one for each option
    quick: bool,
    rounds: int,
    only: tuple[str, ...],
    without: tuple[str, ...],
    files: int | None,
    events: int | None,
    steps: int | None,
    data: Path | None,
    record: Path | None,
) -> None:
    """Measure daskvine beside dask's own schedulers, distributed, and a bare pipeline."""
    try:
        cases = chosen(only, without)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--only, --without") from None
    size = QUICK if quick else FULL
    size = dataclasses.replace(
        size, files=files or size.files, events=events or size.events, steps=steps or size.steps
    )
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # clean up then, too
    here = machine.describe()
    with tempfile.TemporaryDirectory(prefix="vine-bench-") as folder:
        _prepare_processes(folder)
        rows, differing = _measure(cases, size, rounds, data or Path(folder) / "data", console)
    console.print(table.table(rows, size, rounds))
    console.print(machine.line(here))
    console.print(NOTE)
    if quick:
        console.print(TOO_SMALL)
    if record is not None:
        table.save(record, table.record(rows, here, size, rounds))
    if differing:
        console.print(f"[bold red]different results: {'; '.join(differing)}[/bold red]")
        sys.exit(1)


def _prepare_processes(folder: str) -> None:
    """Have all that contenders write gone with the folder, and nobody use more threads than it was given."""
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        os.environ[f"{name}_NUM_THREADS"] = "1"


def _measure(
    cases: list[Case], size: Size, rounds: int, data: Path, console: Console
) -> tuple[list[contest.Row], list[str]]:
    rows: list[contest.Row] = []
    differing: list[str] = []
    with Console(stderr=True).status("starting") as status:
        for case in cases:
            if case.name == "adl":
                if importlib.util.find_spec("coffea") is None:
                    console.print(WITHOUT_HEP, markup=False)
                    continue
                status.update("ADL: writing the data set")
                size = _with_data(size, data)
            try:
                result = contest.hold(case, size, rounds, status.update)
            except ContenderFailed as error:
                raise click.ClickException(str(error)) from None
            rows += result.rows
            differing += result.differing
    return rows, differing


def _with_data(size: Size, folder: Path) -> Size:
    from daskvine.demo.nanoaod import write_dataset

    paths = write_dataset(folder, size.files, size.events)
    return dataclasses.replace(size, paths=tuple(map(str, paths)))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
