"""Runs the ladder, and shows what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.ladder.measure import Measured
from benchmarks.ladder.stacks import CENTRAL, HIGH, LOW, PEER_RATE, STACKS, Scale, Stack, provenance
from vinecore.simulate import Report, simulate

ABSENT = "-"
INK, GREY, BLUE, ORANGE = "#333333", "#b0b0b0", "#5b8db8", "#e0a060"


@dataclass(frozen=True)
class Rung:
    """One stack, simulated.

    Attributes
    ----------
    central, low, high : Report
        With this manager, for what is assumed: the middle, and both ends.
    other : Report
        The middle, with a manager as slow as the peer's.
    """

    stack: Stack
    central: Report
    low: Report
    high: Report
    other: Report

    @property
    def ratio(self) -> float | None:
        """How many times as long the published run took."""
        return None if self.stack.published_s is None else self.stack.published_s / self.central.makespan_s


def climb(measured: Measured, scale: Scale, seed: int, say: Callable[[str], None]) -> list[Rung]:
    """Simulate every stack; ``say`` is told what is done now."""
    rungs = []
    for stack in STACKS:
        say(f"stack {stack.name}: {stack.title}")
        cluster, costs = stack.cluster(scale), stack.costs(measured.costs)
        workloads = [stack.workload(scale, assumed, seed) for assumed in (CENTRAL, LOW, HIGH)]
        central, low, high = (simulate(workload, cluster, costs, seed=seed) for workload in workloads)
        other = simulate(workloads[0], cluster, stack.costs(measured.costs, other_manager=True), seed=seed)
        failed = [report for report in (central, low, high, other) if report.outcome != "success"]
        if failed:
            msg = f"stack {stack.name} has failed: {failed[0].outcome}: {failed[0].reason}"
            raise RuntimeError(msg)
        rungs.append(Rung(stack, central, low, high, other))
    return rungs


def table(rungs: list[Rung], scale: Scale) -> Table:
    """Build a table with the published and the simulated times side by side."""
    title = f"{scale.tasks:,} tasks, {scale.workers:,} workers of {scale.cores} cores"
    if not scale.is_published:
        title += ": not what was published, so compare no times"
    shown = Table(title=title, title_justify="left")
    for heading in ("stack", ""):
        shown.add_column(heading, no_wrap=True)
    for heading in (
        "published\ns", "simulated\ns", "published /\nsimulated", "low to high\ns", f"other manager\n{PEER_RATE:.0f} tasks/s", "cores with\na task",
        "manager's\nlink GB", "most between two GB\npublished, simulated",
    ):  # fmt: skip
        shown.add_column(heading, justify="right", no_wrap=True)
    for rung in rungs:
        stack, central = rung.stack, rung.central
        through = central.bytes_moved["to_workers"] + central.bytes_moved["to_manager"]
        pair = ABSENT if stack.published_pair is None else f"{stack.published_pair / 1e9:.0f}"
        shown.add_row(
            stack.name,
            stack.title,
            ABSENT if stack.published_s is None else f"{stack.published_s:,.0f}",
            f"[bold]{central.makespan_s:,.0f}[/bold]",
            ABSENT if rung.ratio is None else f"{rung.ratio:.1f}",
            f"{rung.low.makespan_s:,.0f} to {rung.high.makespan_s:,.0f}",
            f"{rung.other.makespan_s:,.0f}",
            f"{central.utilisation:.0%}",
            f"{through / 1e9:,.1f}",
            f"{pair}, {central.max_pair_bytes / 1e9:.1f}",
        )
    return shown


def numbers(measured: Measured) -> Table:
    """Where every number comes from."""
    shown = Table(title="What is published, measured and assumed", title_justify="left")
    for heading in ("what", "how much", "", "from"):
        shown.add_column(heading, overflow="fold")
    for row in provenance(measured.costs, measured.modules):
        shown.add_row(*row)
    return shown


def record(rungs: list[Rung], measured: Measured, scale: Scale, machine: dict[str, Any]) -> dict[str, Any]:
    """Everything, for a program."""
    return {
        "machine": machine,
        "scale": vars(scale),
        "costs": vars(measured.costs),
        "stacks": [
            {
                "stack": rung.stack.name,
                "title": rung.stack.title,
                "published_s": rung.stack.published_s,
                **{name: getattr(rung, name).record() for name in ("central", "low", "high", "other")},
            }
            for rung in rungs
        ],
    }


def draw(rungs: list[Rung], scale: Scale, path: Path) -> None:
    """Draw published and simulated times, on a scale on which equal steps are equal factors."""
    from matplotlib.figure import Figure  # not through pyplot, which looks for a display
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(9.6, 5.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    height = 0.26
    for place, rung in enumerate(rungs):
        published, central = rung.stack.published_s, rung.central.makespan_s
        if published is not None:
            _bar(axes, place - height, published, GREY, "published")
        _bar(axes, place, central, BLUE, "simulated, this code's manager", rung.high.makespan_s)
        axes.plot(
            [rung.low.makespan_s, rung.high.makespan_s], [place, place], color=INK, linewidth=1.2, marker="|", markersize=9,
            label="the same for shorter tasks and smaller results, to longer and larger ones",
        )  # fmt: skip
        _bar(
            axes,
            place + height,
            rung.other.makespan_s,
            ORANGE,
            f"simulated, with a manager of {PEER_RATE:.0f} tasks/s",
        )
    names = [f"{rung.stack.name}  {rung.stack.title}".replace(", ", ",\n") for rung in rungs]
    axes.set_yticks(range(len(rungs)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    longest = max(max(r.high.makespan_s, r.other.makespan_s, r.stack.published_s or 0) for r in rungs)
    shortest = min(min(r.low.makespan_s, r.central.makespan_s) for r in rungs)
    axes.set_xlim(shortest / 2, longest * 1.9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,.0f}"))
    axes.set_xlabel("makespan in seconds (logarithmic)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e4e4e4", zorder=0)
    axes.set_axisbelow(True)
    title = f"The published ladder and its simulation: {scale.tasks:,} tasks, {scale.workers} workers of {scale.cores} cores"
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(
        once.values(), once.keys(), loc="outside lower center", ncols=2, fontsize=8.5, frameon=False
    )
    figure.savefig(path)


def _bar(axes: Any, place: float, seconds: float, color: str, label: str, beside: float = 0.0) -> None:
    axes.barh(place, seconds, height=0.24, color=color, label=label)
    axes.text(max(seconds, beside) * 1.05, place, f"{seconds:,.0f}", va="center", fontsize=9, color=INK)
