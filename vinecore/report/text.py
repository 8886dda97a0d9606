"""The report of a run as text: a headline, tables, and what went wrong."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from statistics import median

from vinecore.journal import records as j
from vinecore.journal.history import History, TaskHistory
from vinecore.report.run import ReportedRun
from vinecore.report.units import format_bytes, format_duration, shorten_text

MAX_CATEGORIES = 15
MAX_GRAPHS = 15
MAX_WORKERS = 10
MAX_REASONS = 5
MAX_REASON_CHARACTERS = 140


def format_run(run: ReportedRun) -> str:
    """Return the report of a run: a headline, tables, and what went wrong."""
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
    """Return the text about damaged lines, whose records are missing in the report."""
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
    stopped = next((record for record in history.others if type(record) is j.JournalStoppedRecord), None)
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
    again = sum(task.reruns for task in tasks)
    cut = Counter(f"{_describe_route(t.source, t.to)}: {t.reason}" for t in history.failed_transfers)
    codes = Counter(str(task.done.exit_code) for task in tasks if task.done and task.done.exit_code)
    damaged = [record for record in history.others if type(record) is j.FilesLostRecord]
    down = Counter(record.reason for record in history.others if type(record) is j.LibraryFailedRecord)
    waited = [record for record in history.others if type(record) is j.StalledRecord and record.text]
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
    """Count the failed attempts by outcome, with their reasons."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for task in history.tasks.values():
        for attempt in task.attempts:
            if attempt.outcome not in ("done", "back", ""):
                found[attempt.outcome][f"{task.submitted.label}: {attempt.reason}"] += 1
    return found


def _count_never_run(history: History) -> dict[str, Counter[str]]:
    """Count the tasks that failed without a failed attempt, by outcome, with the reasons."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for task in history.tasks.values():
        how = {attempt.outcome for attempt in task.attempts}
        if task.outcome not in ("", "success", "cancelled", *how):
            found[task.outcome][f"{task.submitted.label}: {task.reason}"] += 1
    return found


def _count_by_reason(found: Counter[str]) -> list[str]:
    return [f"{count:,} times: {text}" if count > 1 else text for text, count in found.most_common()]


def _format_group(what: str, count: int, details: Sequence[str] = ()) -> Iterator[str]:
    """Return the text about a number of equal events, with some details."""
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
