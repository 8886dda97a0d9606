"""The command ``vine_journal``."""

from __future__ import annotations

from pathlib import Path

import click

from vinecore.journal.history import load
from vinecore.report.plot import plot_run
from vinecore.report.run import ReportedRun
from vinecore.report.text import format_run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", type=click.Path(path_type=Path), default=Path("vine-run-info"))
@click.option(
    "--plot",
    "picture",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw the run into this file (png, pdf or svg; needs matplotlib).",
)
def main(path: Path, picture: Path | None) -> None:
    """Say what happened in a run that has written a journal.

    PATH is the journal, its folder, or the run_info_path of the manager, which means the last run there
    (default: vine-run-info). The run may still be going on.
    """
    try:
        run = ReportedRun(load(path, damaged_too=True))
        click.echo(format_run(run))
        if picture is not None:
            plot_run(run, picture)
            click.echo(f"\ndrawn: {picture}")
    except (OSError, ValueError, ImportError) as error:
        raise click.ClickException(str(error)) from None
