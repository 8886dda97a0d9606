"""``python -m benchmarks.accumulation``: what histograms that are mostly empty cost, as they are and packed, and their merges, at once and in turn.

The histogram is one of TopEFT's kind: bins of an observable in many categories, and for each of them the 378 coefficients of a quadratic form in 26
couplings. Either whole categories are filled (clusters), or bins anywhere (scattered). Every line is measured in a process of its own, with the functions
that slots use; all parts of a merge are the same file.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from typing_extensions import Self

MB = 1_000_000
COEFFICIENTS = 378
IN_A_CATEGORY = 20
EVERYTHING = sys.maxsize
PATTERNS = ("scattered", "clusters")


class Variant(NamedTuple):
    """One line of the table."""

    pattern: str
    packed: bool
    in_turn: bool
    mb: int
    filled: float
    parts: int


class Measured(NamedTuple):
    """What it took: MB and seconds of CPU time, which minds other programs least; memory beside what was there before."""

    stored: float
    write_s: float
    write_mb: float
    read_s: float
    read_mb: float
    merge_s: float
    merge_mb: float


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--mb", default=400, show_default=True, type=click.IntRange(1), help="Size of the histogram.")
@click.option(
    "--filled", default=0.15, show_default=True, type=click.FloatRange(0, 1), help="Share of its bins."
)
@click.option(
    "--parts", default=4, show_default=True, type=click.IntRange(2), help="Histograms that are merged."
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Best of so many.")
def main(mb: int, filled: float, parts: int, rounds: int) -> None:
    """Measure histograms that are mostly empty, as they are and packed, and their merges, at once and in turn."""
    title = f"a histogram of {mb} MB, {filled:.0%} filled, and the merge of {parts} such"
    table = Table(title=title, title_justify="left")
    for heading in ("filled", "kept", "merged"):
        table.add_column(heading)
    for heading in ("disk and wire MB", "write CPU s", "+MB", "read CPU s", "+MB", "merge CPU s", "+MB"):
        table.add_column(heading, justify="right")
    for pattern in PATTERNS:
        for packed, in_turn in ((False, False), (False, True), (True, False), (True, True)):
            variant = Variant(pattern, packed, in_turn, mb, filled, parts)
            runs = [_in_a_process(variant) for _ in range(rounds)]
            best = Measured(*map(min, zip(*runs, strict=True)))
            words = (pattern, "packed" if packed else "as it is", "in turn" if in_turn else "at once")
            numbers = (
                f"{value:.2f}" if name.endswith("_s") else f"{value:.0f}"
                for name, value in best._asdict().items()
            )
            table.add_row(*words, *numbers, end_section=packed and in_turn)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _in_a_process(variant: Variant) -> Measured:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (variant,))


def measure(variant: Variant) -> Measured:
    """Write, read and merge histograms, in this process."""
    from dask_histogram.core import hist_safe_sum
    from vineworker.library.results import write_parts

    from daskvine.remote import task_functions
    from vinecore.protocol.serialization import values, zero_suppression
    from vinecore.protocol.serialization.placeholders import LazyValue

    if not variant.packed:
        zero_suppression.MIN_BYTES = EVERYTHING
    task_functions.MAX_BYTES_LOADED_AT_ONCE = 0 if variant.in_turn else EVERYTHING
    made = histogram(variant)
    with tempfile.TemporaryDirectory(prefix="vine-bench-") as folder:
        path = str(Path(folder) / "histogram")
        with _Watch() as write:
            write_parts(path, values.dump(made))
        size = Path(path).stat().st_size
        with _Watch() as read:
            loaded = values.load_file(path)
        assert loaded == made
        del loaded, made
        stored = [LazyValue(partial(values.map_object, path)) for _ in range(variant.parts)]
        with _Watch() as merge:
            task_functions.reduce_partial_results(hist_safe_sum, "histograms", {}, *stored)
    return Measured(size / MB, write.seconds, write.mb, read.seconds, read.mb, merge.seconds, merge.mb)


def histogram(variant: Variant) -> Any:
    """Make a histogram of which a share is filled."""
    import hist
    import numpy as np

    categories = max(1, variant.mb * MB // (8 * COEFFICIENTS * IN_A_CATEGORY))
    made: Any = hist.Hist(
        hist.axis.Regular(IN_A_CATEGORY, 0, 1, flow=False),
        hist.axis.Integer(0, categories, flow=False),
        hist.axis.Integer(0, COEFFICIENTS, flow=False),
    )
    bins, rng = made.view(flow=True), np.random.default_rng(1)
    if variant.pattern == "clusters":
        there = np.broadcast_to(rng.random(categories) < variant.filled, bins.shape[:2])
    else:
        there = rng.random(bins.shape[:2]) < variant.filled
    for coefficient in range(COEFFICIENTS):
        bins[:, :, coefficient][there] = rng.random(int(there.sum()))
    return made


class _Watch:
    """CPU time, and the most memory of its own that this process had meanwhile beyond what it had before."""

    def __enter__(self) -> Self:
        self._end = threading.Event()
        self._before = self._most = _anonymous()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        self._start = time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.thread_time() - self._start
        self._end.set()
        self._thread.join()
        self.mb = (self._most - self._before) / MB

    def _look(self) -> None:
        while True:
            self._most = max(self._most, _anonymous())
            if self._end.wait(0.002):
                self._most = max(self._most, _anonymous())
                return


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
