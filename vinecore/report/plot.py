"""The report of a run as a picture: tasks, cores and workers over time."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from vinecore.journal import records as j
from vinecore.report.run import ReportedRun
from vinecore.report.units import format_duration, shorten_text

BINS = 400
MAX_BARS = 5000
MAX_WORKER_ROWS = 80
CATEGORY_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf")
FAILED_COLOUR = "#c0392b"


def plot_run(run: ReportedRun, path: str | Path) -> None:
    """Draw a run: tasks, cores and workers over time, and what each worker did.

    Raises
    ------
    ImportError
        There is no matplotlib.
    ValueError
        There is nothing to draw.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        msg = "a plot needs matplotlib: pip install matplotlib"
        raise ImportError(msg) from None
    from matplotlib.figure import Figure

    history = run.history
    if not history.tasks or not history.workers:
        msg = f"there is nothing to draw: {len(history.tasks)} tasks, {len(history.workers)} workers"
        raise ValueError(msg)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        cores_at_all = sum(max(worker.joined.cores, 1) + 1 for worker in history.workers.values())
        heights = [2.2, 1.8, 0.9, min(max(0.25 * cores_at_all, 1.2), 4.5)]
        figure = Figure(figsize=(11, 2 + sum(heights)), layout="constrained")
        tasks, cores, workers, lanes = figure.subplots(4, 1, sharex=True, height_ratios=heights)
        drawing = _Plot(run)
        drawing.draw_tasks(tasks)
        drawing.draw_cores(cores)
        drawing.draw_workers(workers)
        drawing.draw_worker_rows(lanes, figure)
        figure.align_ylabels()
        lanes.set_xlim(0, drawing.length)
        lanes.set_xlabel(f"time since the first submission [{drawing.unit}]")
        about = history.journal
        began = datetime.fromtimestamp(about.time).astimezone().strftime("%Y-%m-%d %H:%M")
        figure.suptitle(
            f"{about.manager} on {about.host}, {began}: {len(history.tasks):,} tasks in {format_duration(drawing.span.seconds)}"
        )
        figure.savefig(path, dpi=130)


class _Plot:
    """The panels of a picture. Times are in `unit`, since the first submission."""

    def __init__(self, run: ReportedRun) -> None:
        self.run, self.history, self.span, self.uses = run, run.history, run.span, run.uses
        seconds = self.span.seconds
        self.unit, self.scale = (
            ("s", 1.0) if seconds < 300 else ("min", 60.0) if seconds < 10_800 else ("h", 3600.0)
        )
        self.length = max(seconds, 1e-6) / self.scale

    def to_unit(self, t: float) -> float:
        """Where a time is drawn."""
        return min(max((t - self.span.start) / self.scale, 0.0), self.length)

    def _accumulate_steps(self, changes: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
        """Convert changes of a number to its values over time."""
        times, levels, level = [0.0], [0.0], 0.0
        for t, change in sorted(changes):
            level += change
            if t == times[-1]:
                levels[-1] = level
            else:
                times.append(t)
                levels.append(level)
        times.append(self.length)
        levels.append(level)
        return times, levels

    def _mean_in_bins(self, spans: Iterable[tuple[float, float, float]]) -> Any:
        """Means of a number, in bins of the time, from when it was there."""
        import numpy as np

        found = np.array([span for span in spans if span[1] > span[0]], dtype=float).reshape(-1, 3)
        edges = np.linspace(0, self.length, BINS + 1)
        # the integral up to each edge: of each piece the part that lies before the edge
        total = np.zeros(BINS + 1)
        for column, sign in ((0, 1.0), (1, -1.0)):
            order = np.argsort(found[:, column])
            times, weights = found[order, column], found[order, 2]
            before = np.searchsorted(times, edges)
            count = np.concatenate([[0.0], np.cumsum(weights)])[before]
            moment = np.concatenate([[0.0], np.cumsum(weights * times)])[before]
            total += sign * (count * edges - moment)
        return np.diff(total) / np.diff(edges)

    def draw_tasks(self, axes: Any) -> None:
        """Tasks that are done, that run and that wait."""
        import numpy as np

        grid = np.linspace(0, self.length, BINS + 1)
        submitted, running, done = [], [], []
        for task in self.history.tasks.values():
            if task.submitted.deferred and not task.attempts:
                continue
            submitted.append(self.to_unit(task.submitted.t))
            if task.done is not None and task.done.ended is not None:
                done.append(self.to_unit(task.done.ended))
        running = [(self.to_unit(use.start), self.to_unit(use.end)) for use in self.uses]
        count = np.searchsorted(np.sort(submitted), grid, side="right")
        over = np.searchsorted(np.sort(done), grid, side="right")
        begun = np.searchsorted(np.sort([start for start, _end in running]), grid, side="right")
        ended = np.searchsorted(np.sort([end for _start, end in running]), grid, side="right")
        now = np.minimum(begun - ended, count - over)
        axes.stackplot(
            grid,
            over,
            now,
            count - over - now,
            labels=["done", "running", "waiting"],
            colors=["#7fb77e", "#e9b44c", "#d9d9d9"],
        )
        axes.set_ylabel("tasks")
        axes.set_ylim(0)
        axes.margins(x=0)
        axes.legend(loc="upper left", ncols=3, frameon=False, bbox_to_anchor=(0, 1.15), borderaxespad=0)

    def draw_cores(self, axes: Any) -> None:
        """Cores that are there, and that are in use."""
        import numpy as np

        mean = self._mean_in_bins(
            (self.to_unit(use.start), self.to_unit(use.end), use.cores) for use in self.uses
        )
        edges = np.linspace(0, self.length, BINS + 1)
        axes.stairs(mean, edges, fill=True, color="#e9b44c", alpha=0.8, label="in use")
        times, levels = self._accumulate_steps(self._worker_intervals(cores=True))
        axes.step(times, levels, where="post", color="black", linewidth=1.2, label="connected")
        axes.set_ylabel("cores")
        axes.set_ylim(0, 1.1 * max(*levels, *mean, 1))
        axes.legend(loc="upper left", ncols=2, frameon=False, bbox_to_anchor=(0, 1.17), borderaxespad=0)

    def draw_workers(self, axes: Any) -> None:
        """Workers that are connected, and when some were lost."""
        times, levels = self._accumulate_steps(self._worker_intervals(cores=False))
        axes.step(times, levels, where="post", color="black", linewidth=1.2)
        lost = [self.to_unit(lost.t) for lost in self.run.lost]
        if lost:
            axes.plot(lost, [0] * len(lost), "x", color=FAILED_COLOUR, clip_on=False, label="worker lost")
            axes.legend(loc="upper left", frameon=False, bbox_to_anchor=(0, 1.3), borderaxespad=0)
        axes.set_ylabel("workers")
        axes.set_ylim(0, 1.15 * max(levels))
        axes.yaxis.get_major_locator().set_params(integer=True)

    def _worker_intervals(self, *, cores: bool) -> Iterator[tuple[float, float]]:
        for worker in self.history.workers.values():
            amount = worker.joined.cores if cores else 1
            yield self.to_unit(worker.joined.t), amount
            if worker.lost is not None and worker.lost.t <= self.span.end:
                yield self.to_unit(worker.lost.t), -amount

    def draw_worker_rows(self, axes: Any, figure: Any) -> None:
        """Draw the work of each worker: every task if there are few, else the cores in use."""
        lanes = sum(max(worker.joined.cores, 1) for worker in self.history.workers.values())
        if len(self.uses) <= MAX_BARS and lanes <= MAX_WORKER_ROWS:
            self._draw_task_bars(axes, figure)
        else:
            self._draw_utilization(axes, figure)

    def _draw_task_bars(self, axes: Any, figure: Any) -> None:
        time: Counter[str] = Counter()
        for use in self.uses:
            time[use.category] += use.end - use.start  # type: ignore[assignment]
        colours = {
            name: colour for (name, _s), colour in zip(time.most_common(), CATEGORY_COLOURS, strict=False)
        }
        free: dict[int, list[float]] = {}
        first: dict[int, int] = {}
        ticks = []
        row = 0
        for number, worker in self.history.workers.items():
            slots = max(worker.joined.cores, 1)
            free[number], first[number] = [0.0] * slots, row
            start, end = (
                self.to_unit(worker.joined.t),
                self.length if worker.lost is None else self.to_unit(worker.lost.t),
            )
            axes.broken_barh([(start, end - start)], (row - 0.5, slots), color="#f0f0f0", zorder=0)
            ticks.append((row + (slots - 1) / 2, f"{number} ({shorten_text(worker.joined.host, 20)})"))
            row += slots + 1
        starts = [
            r
            for r in self.history.others
            if type(r) is j.LibraryReadyRecord and r.worker in first and r.t > self.span.start
        ]
        for record in starts:
            begun = self.to_unit(record.t - record.seconds)
            axes.broken_barh(
                [(begun, self.to_unit(record.t) - begun)],
                (first[record.worker] - 0.45, len(free[record.worker]) - 0.1),
                color="#d5d0e5",
            )
        bars: dict[str, list[tuple[float, float, int, bool]]] = defaultdict(list)
        for use in self.uses:
            if use.worker not in free:
                continue
            slots_free = free[use.worker]
            lane = min(range(len(slots_free)), key=slots_free.__getitem__)
            slots_free[lane] = use.end
            bars[use.category if use.category in colours else "others"].append(
                (
                    self.to_unit(use.start),
                    self.to_unit(use.end) - self.to_unit(use.start),
                    first[use.worker] + lane,
                    use.well,
                )
            )
        for name, found in bars.items():
            edges = ["none" if well else FAILED_COLOUR for *_rest, well in found]
            axes.barh([lane for _s, _l, lane, _w in found], [length for _s, length, _lane, _w in found], 0.9, [start for start, *_rest in found],
                      color=colours.get(name, "#888888"), edgecolor=edges, linewidth=1.2, label=shorten_text(name.lstrip("_"), 30))  # fmt: skip
        if not all(use.well for use in self.uses):
            axes.barh([0], [0], color="white", edgecolor=FAILED_COLOUR, linewidth=1.2, label="failed")
        if starts:
            axes.barh([0], [0], color="#d5d0e5", label="a library starts")
        axes.set_yticks([place for place, _name in ticks], [name for _place, name in ticks])
        axes.set_ylim(row - 1, -1)
        axes.set_ylabel("each worker")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=6, frameon=False)

    def _draw_utilization(self, axes: Any, figure: Any) -> None:
        import numpy as np

        of: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
        for use in self.uses:
            of[use.worker].append((self.to_unit(use.start), self.to_unit(use.end), use.cores))
        middles = (np.arange(BINS) + 0.5) * self.length / BINS
        rows = []
        for number, worker in self.history.workers.items():
            row = self._mean_in_bins(of[number]) / max(worker.joined.cores, 1)
            end = self.length if worker.lost is None else self.to_unit(worker.lost.t)
            row[(middles < self.to_unit(worker.joined.t)) | (middles > end)] = math.nan
            rows.append(row)
        image = axes.imshow(np.array(rows), aspect="auto", interpolation="nearest", cmap="YlOrRd", vmin=0, vmax=1,
                            extent=(0, self.length, len(rows) + 0.5, 0.5))  # fmt: skip
        axes.set_ylabel("workers, in the order they came")
        axes.yaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(
            image,
            ax=axes,
            label="share of its cores in use",
            orientation="horizontal",
            shrink=0.4,
            aspect=40,
            pad=0.02,
        )
