"""What a journal says of a run, for people: the command ``vine_report``, as text and as a picture."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click

from vinecore.journal import records as j
from vinecore.journal.history import History, TaskHistory, WorkerHistory, load

MAX_CATEGORIES = 15
MAX_GRAPHS = 15
MAX_WORKERS = 10
MAX_REASONS = 5
MAX_REASON_CHARACTERS = 140


class TaskInterval(NamedTuple):
    """What a task had of a worker, and when."""

    worker: int
    start: float
    end: float
    cores: float
    category: str
    well: bool


class TimeWindow(NamedTuple):
    """The part of a run that counts: from the first submission to the end of the last task."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.start


class ReportedRun:
    """A run as it is reported.

    Attributes
    ----------
    history : journal.History
        What the journal says.
    span : Window
        The part of it that counts.
    uses : list of Use
        The time that tasks have run on workers, where it is known, in the order of their starts.
    lost : list of WorkerLost
        The workers that were lost before the run was over.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.span = _find_window(history)
        self.uses = sorted(_find_task_intervals(history), key=lambda use: use.start)
        gone = [worker.lost for worker in history.workers.values() if worker.lost is not None]
        self.lost = [record for record in gone if record.t <= self.span.end]

    def connected_seconds(self, worker: WorkerHistory) -> float:
        """How long a worker was connected, within the part that counts."""
        end = self.span.end if worker.lost is None else min(worker.lost.t, self.span.end)
        return max(0.0, end - max(worker.joined.t, self.span.start))


def _find_window(history: History) -> TimeWindow:
    tasks = history.tasks.values()
    start = min((task.submitted.t for task in tasks), default=0.0)
    end, running = start, False
    for task in tasks:
        for attempt in task.attempts:
            if attempt.ended is None:
                running = True
            elif attempt.ended > end:
                end = attempt.ended
    return TimeWindow(start, history.end if running else end)


def _find_task_intervals(history: History) -> Iterator[TaskInterval]:
    for task in history.tasks.values():
        for attempt in task.attempts:
            start, end = attempt.started_at, attempt.ended
            if start is not None and end is not None:
                yield TaskInterval(
                    attempt.worker,
                    start,
                    end,
                    attempt.cores,
                    task.submitted.category,
                    attempt.outcome == "done",
                )


# ---- as text


def format_run(run: ReportedRun) -> str:
    """Describe a run in words and tables."""
    history = run.history
    parts = [
        _format_damage(history),
        _format_headline(run),
        _format_graphs(run),
        _format_categories(history),
        _format_transfers(history),
        _format_problems(run),
        _format_busiest_workers(run),
    ]
    return "\n\n".join(part for part in parts if part)


def _format_damage(history: History) -> str:
    """Say which lines are damaged, because what they said is missing below."""
    if not history.damaged:
        return ""
    lines = _format_group(
        "lines of the journal are damaged, and left out", len(history.damaged), history.damaged
    )
    return "\n".join(["damaged", *lines])


def _format_headline(run: ReportedRun) -> str:
    history, span = run.history, run.span
    about, tasks = history.journal, history.tasks.values()
    began = datetime.fromtimestamp(about.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    stopped = next((record for record in history.others if type(record) is j.JournalStopped), None)
    end = f"it ended after {format_duration(history.end)}"
    if stopped is not None:
        end = f"the journal ends after {format_duration(history.end)}: {stopped.reason}"
    elif not history.closed:
        end = f"no end after {format_duration(history.end)}: it still runs, or was killed"
    outcomes = Counter(_describe_outcome(task, history) for task in tasks)
    rows = [
        ("manager", f"{about.manager} on {about.host}, daskvine {about.daskvine}, Python {about.python}"),
        ("began", f"{began}; {end}"),
    ]
    if tasks:
        said = ", ".join(f"{count:,} {name}" for name, count in outcomes.most_common())
        rows += [
            (
                "makespan",
                f"{format_duration(span.seconds)} from the first submission to the end of the last task",
            ),
            ("tasks", f"{len(tasks):,}: {said}"),
        ]
    if history.graphs:
        ended = Counter(
            graph.ended.outcome if graph.ended else "unfinished" if graph.closed is None else "cancelled"
            for graph in history.graphs.values()
        )
        rows.append(("graphs", ", ".join(f"{count} {name}" for name, count in ended.most_common())))
    if history.workers:
        rows.append(("workers", _format_workers(run)))
    there = sum(run.connected_seconds(worker) * worker.joined.cores for worker in history.workers.values())
    if there > 0:
        busy = sum((use.end - use.start) * use.cores for use in run.uses)
        text = f"{100 * busy / there:.1f} % in use: tasks ran for {format_duration(busy)} of the {format_duration(there)} that cores were there"
        rows.append(("cores", text))
    if not tasks:
        rows.append(("tasks", "none"))
    return "\n".join(f"{name:<10}{text}" for name, text in rows)


def _describe_outcome(task: TaskHistory, history: History) -> str:
    if task.outcome == "success":
        return "done"
    if task.outcome == "cancelled":
        return "cancelled"
    if task.outcome:
        return "failed"
    if task.submitted.deferred:
        return "not needed"
    graph = history.graphs.get(task.submitted.graph)
    over = graph is not None and (graph.ended is not None or graph.closed is not None)
    return "cancelled" if over else "unfinished"


def _format_workers(run: ReportedRun) -> str:
    history = run.history
    changes: list[tuple[float, int, int]] = []
    for worker in history.workers.values():
        changes.append((worker.joined.t, 1, worker.joined.cores))
        if worker.lost is not None:
            changes.append((worker.lost.t, -1, -worker.joined.cores))
    number = cores = most = most_cores = 0
    for _t, one, amount in sorted(changes):
        number, cores = number + one, cores + amount
        most, most_cores = max(most, number), max(most_cores, cores)
    lost = len(run.lost)
    return f"{len(history.workers):,}, at most {most:,} with {most_cores:,} cores at a time" + (
        f"; {lost} lost" if lost else ""
    )


def _format_graphs(run: ReportedRun) -> str:
    graphs = run.history.graphs
    if len(graphs) < 2:
        return ""
    rows = [("graphs", "tasks", "began after", "took", "outcome")]
    for number, graph in list(graphs.items())[:MAX_GRAPHS]:
        began = graph.opened.t
        label = re.sub(r"\[[^]]*\]", "", graph.opened.label)  # without its colours
        end = graph.ended.t if graph.ended else graph.closed
        took = "-" if end is None else format_duration(end - began)
        outcome = graph.ended.outcome if graph.ended else "unfinished" if end is None else "cancelled"
        name = shorten_text(f"{number} {label}", 40)
        rows.append(
            (name, f"{graph.tasks:,}", format_duration(max(began - run.span.start, 0.0)), took, outcome)
        )
    more = len(graphs) - MAX_GRAPHS
    return _format_table(rows) + (f"\nand {more:,} more graphs" if more > 0 else "")


def _format_categories(history: History) -> str:
    walls: dict[str, list[float]] = defaultdict(list)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for task in history.tasks.values():
        category = task.submitted.category
        counts[category] += 1
        walls[category] += [a.wall_s for a in task.attempts if a.outcome == "done" and a.wall_s is not None]
        if task.done is not None:
            sizes[category] += sum(
                max(history.files[name].size, 0) for name in task.outputs if name in history.files
            )
    if not counts:
        return ""
    rows: list[Sequence[str]] = [
        ("tasks by category", "number", "ran", "median", "longest", "in all", "made")
    ]
    order = sorted(counts, key=lambda name: sum(walls[name]), reverse=True)
    for name in order[:MAX_CATEGORIES]:
        found = walls[name]
        times = (
            [format_duration(value) for value in (median(found), max(found), sum(found))]
            if found
            else ["-"] * 3
        )
        rows.append(
            (
                shorten_text(name, 40),
                f"{counts[name]:,}",
                f"{len(found):,}",
                *times,
                format_bytes(sizes[name]),
            )
        )
    text = _format_table(rows)
    more = len(order) - MAX_CATEGORIES
    return f"{text}\nand {more:,} more categories" if more > 0 else text


def _format_transfers(history: History) -> str:
    moved: dict[str, list[float]] = {}

    def add(name: str, count: float, seconds: float = 0.0) -> None:
        row = moved.setdefault(name, [0, 0.0, 0.0])
        row[0], row[1], row[2] = row[0] + 1, row[1] + count, row[2] + seconds

    for transfer in history.transfers:
        add(_describe_route(transfer.source, transfer.to), transfer.bytes, transfer.seconds)
    for sent in history.sent:
        known = history.files.get(sent.file)
        add("from the manager, in messages", max(known.size, 0) if known else 0)
    rows = [("bytes moved", "transfers", "in all", "mean")]
    if history.returned_bytes:
        moved["to the manager, in messages"] = [0, history.returned_bytes, 0.0]
    for name, (number, count, seconds) in sorted(moved.items(), key=lambda item: -item[1][1]):
        mean = f"{format_duration(seconds / number)} each" if seconds else ""
        rows.append((name, f"{number:,.0f}" if number else "", format_bytes(count), mean))
    return _format_table(rows) if len(rows) > 1 else ""


def _describe_route(source: j.Place, to: j.Place) -> str:
    if to == j.MANAGER:
        return "to the manager"
    if isinstance(source, int):
        return "from worker to worker"
    return {j.MANAGER: "from the manager", j.ARCHIVE: "unpacked on workers"}.get(source, "from addresses")


def _format_problems(run: ReportedRun) -> str:
    history, start = run.history, run.span.start
    tasks = history.tasks.values()
    lost = run.lost
    back = sum(attempt.reason == "the worker was lost" for task in tasks for attempt in task.attempts)
    again = sum(task.woken for task in tasks)
    cut = Counter(f"{_describe_route(t.source, t.to)}: {t.reason}" for t in history.failed_transfers)
    codes = Counter(str(task.done.exit_code) for task in tasks if task.done and task.done.exit_code)
    damaged = [record for record in history.others if type(record) is j.FilesLost]
    down = Counter(record.reason for record in history.others if type(record) is j.LibraryFailed)
    waited = [record for record in history.others if type(record) is j.Stalled and record.text]
    lines = [
        *_format_group(
            "workers that were lost",
            len(lost),
            [f"worker {x.worker}, after {format_duration(x.t - start)}: {x.reason}" for x in lost],
        ),
        *_format_group("tasks that ran or waited on a worker that was lost", back),
        *_format_group("tasks that ran again because what they had made was lost", again),
    ]
    for kind, reasons in _count_failures(history).items():
        lines += _format_group(
            f"attempts that ended with {kind!r}", reasons.total(), _count_by_reason(reasons)
        )
    for kind, reasons in _count_never_run(history).items():
        lines += _format_group(f"tasks that failed with {kind!r}", reasons.total(), _count_by_reason(reasons))
    lines += [
        *_format_group("tasks that ended with an exit code", codes.total(), _count_by_reason(codes)),
        *_format_group("transfers that failed", cut.total(), _count_by_reason(cut)),
        *_format_group("libraries that failed", down.total(), _count_by_reason(down)),
        *_format_group("workers with files that are damaged or gone", len(damaged), [f"worker {x.worker}: {len(x.files):,} files" for x in damaged]),
        *_format_group("times when nothing could run", len(waited), [f"after {format_duration(x.t - start)}: {x.text}" for x in waited]),
    ]  # fmt: skip
    return "\n".join(["trouble", *lines]) if lines else ""


def _count_failures(history: History) -> dict[str, Counter[str]]:
    """The attempts that failed, by kind, with their reasons."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for task in history.tasks.values():
        for attempt in task.attempts:
            if attempt.outcome not in ("done", "back", ""):
                found[attempt.outcome][f"{task.submitted.label}: {attempt.reason}"] += 1
    return found


def _count_never_run(history: History) -> dict[str, Counter[str]]:
    """The tasks that failed and not by an attempt, by kind, with the reasons."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for task in history.tasks.values():
        how = {attempt.outcome for attempt in task.attempts}
        if task.outcome not in ("", "success", "cancelled", *how):
            found[task.outcome][f"{task.submitted.label}: {task.reason}"] += 1
    return found


def _count_by_reason(found: Counter[str]) -> list[str]:
    return [f"{count:,} times: {text}" if count > 1 else text for text, count in found.most_common()]


def _format_group(what: str, count: int, details: Sequence[str] = ()) -> Iterator[str]:
    """Say how often something happened, with some details."""
    if count:
        yield f"  {what}: {count:,}"
        for text in details[:MAX_REASONS]:
            yield f"      {shorten_text(text, MAX_REASON_CHARACTERS)}"
        if len(details) > MAX_REASONS:
            yield f"      and {len(details) - MAX_REASONS:,} more"


def _format_busiest_workers(run: ReportedRun) -> str:
    history = run.history
    busy: Counter[int] = Counter()
    count: Counter[int] = Counter()
    for use in run.uses:
        busy[use.worker] += (use.end - use.start) * use.cores  # type: ignore[assignment]
        count[use.worker] += 1
    into: Counter[int] = Counter()
    out: Counter[int] = Counter()
    for transfer in history.transfers:
        if isinstance(transfer.to, int):
            into[transfer.to] += transfer.bytes
        if isinstance(transfer.source, int):
            out[transfer.source] += transfer.bytes
    rows: list[Sequence[str]] = [
        ("busiest workers", "cores", "there", "tasks", "ran", "in use", "got", "gave")
    ]
    for number, seconds in busy.most_common(MAX_WORKERS):
        worker = history.workers.get(number)
        if worker is None:
            continue
        there = run.connected_seconds(worker)
        used = (
            f"{100 * seconds / (there * worker.joined.cores):.0f} %" if there and worker.joined.cores else "-"
        )
        rows.append((f"{number} on {shorten_text(worker.joined.host, 30)}", str(worker.joined.cores), format_duration(there), f"{count[number]:,}",
                     format_duration(seconds), used, format_bytes(into[number]), format_bytes(out[number])))  # fmt: skip
    if len(rows) == 1:
        return ""
    more = len(history.workers) - len(rows) + 1
    return _format_table(rows) + (f"\nand {more:,} more workers" if more > 0 else "")


def _format_table(rows: Sequence[Sequence[str]]) -> str:
    """Set rows in columns, the first one to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("   ".join(cells).rstrip())
    return "\n".join(lines)


def format_duration(seconds: float) -> str:
    """Say how long something took."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def format_bytes(count: float) -> str:
    """Say how many bytes something has."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return (
        f"{count:.0f} B"
        if unit == "B"
        else f"{count:,.3g} {unit}"
        if count < 1000
        else f"{count:,.0f} {unit}"
    )


def shorten_text(text: str, most: int) -> str:
    """Return a text on one line, cut to a number of characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


# ---- as a picture

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
        """A number over time, from its changes."""
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
        """What each worker did: every task if there are few, else how much of its cores was in use."""
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
            if type(r) is j.LibraryReady and r.worker in first and r.t > self.span.start
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


# ---- the command


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
