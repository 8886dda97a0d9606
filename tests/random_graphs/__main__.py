"""Random graphs by the thousand: `python -m tests.random_graphs --cases 2000 --seed 1`.

Each is computed with a vine, and again after each of some edits, and compared with dask's synchronous scheduler. The seeds of those
that differ are printed; `--cases 1 --seed N` computes one of them again.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

from daskvine import DaskVine
from tests.random_graphs.cases import make_case
from tests.random_graphs.kinds import EDITS, KINDS
from tests.random_graphs.leftovers import nothing_left_in
from tests.random_graphs.runner import home_in, run_case

A_VINE = 250
"""Cases that are computed with one vine."""

A_CASE_S = 600.0
"""After so long a case hangs: where all threads are is printed, and that is the end."""


@click.command()
@click.option("--cases", type=int, default=2000, show_default=True, help="How many.")
@click.option("--seed", type=int, default=1, show_default=True, help="The first seed.")
@click.option("--most", type=int, default=20, show_default=True, help="Wrong cases to stop after.")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice([*KINDS, *EDITS, "late"]),
    help="A kind, an edit, or late modules to leave out.",
)
@click.option(
    "--reuse/--no-reuse",
    default=None,
    help="Results are reused in all cases or in none; the default is by chance.",
)
@click.option("--show", is_flag=True, help="Print each case.")
def main(cases: int, seed: int, most: int, without: tuple[str, ...], reuse: bool | None, show: bool) -> None:
    """Compute them; fail if any was wrong."""
    seeds = list(range(seed, seed + cases))
    wrong: list[int] = []
    kinds: Counter[str] = Counter()
    began = time.monotonic()
    while seeds and len(wrong) < most:
        some, seeds = seeds[:A_VINE], seeds[A_VINE:]
        with (
            tempfile.TemporaryDirectory() as folder,
            nothing_left_in(Path(folder) / "tmp"),
            home_in(Path(folder) / "home") as home,
            DaskVine.local(workers=2, cores=1, memory_mb=2000, disk_mb=2000) as m,
        ):
            for number in some:
                if len(wrong) >= most:
                    break
                case = make_case(number, frozenset(without), reuse)
                if show:
                    print(case, flush=True)
                faulthandler.dump_traceback_later(A_CASE_S, exit=True)
                try:
                    run_case(m, case, home)
                except Exception as error:  # noqa: BLE001 - any is a finding
                    wrong.append(number)
                    kinds.update({vertex.kind.name for vertex in case.vertices})
                    print(f"seed {number}: {case}\n  {type(error).__name__}: {str(error)[:400]}", flush=True)
        faulthandler.cancel_dump_traceback_later()
        print(f"up to seed {some[-1]}: {len(wrong)} wrong, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{len(wrong)} wrong {wrong}\nkinds in them: {kinds.most_common()}")
    sys.stdout.flush()
    sys.exit(bool(wrong))


if __name__ == "__main__":
    os.umask(0o077)
    main()
