"""The table and the plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

FLAT = 1.3  # how much larger the largest may be than the smallest
MEMORY = 2048  # bytes per vertex


class Column(NamedTuple):
    """A quantity of the table."""

    title: str
    form: str
    judged: bool = False  # whether it has to be flat


COLUMNS = {
    "loop_us": Column("manager\nµs/task", "{:.1f}", True),
    "user_us": Column("submitting\nµs/task", "{:.1f}"),
    "memory_per_vertex": Column("memory\nB/vertex", "{:,.0f}", True),
    "rate": Column("tasks/s", "{:,.0f}"),
    "connect_s": Column("connected\nafter s", "{:.2f}"),
    "first_s": Column("first vertex\nafter s", "{:.2f}"),
    "away_s": Column("busy with\none thing s", "{:.2f}"),
    "lost": Column("workers\nlost", "{:.0f}"),
}


def spread(rows: list[dict[str, Any]], name: str) -> float:
    """How many times as large as the smallest the largest value of a column is."""
    values = [row[name] for row in rows]
    return float(max(values) / min(values)) if min(values) > 0 else 1.0


def table(rows: list[dict[str, Any]]) -> Table:
    """All cells, and how flat the columns are."""
    columns = {name: column for name, column in COLUMNS.items() if name in rows[0]}
    shown = Table(show_footer=True)
    shown.add_column("tasks", "largest /", justify="right")
    shown.add_column("workers", "smallest", justify="right")
    for name, column in columns.items():
        footer = f"{spread(rows, name):.2f}" if column.judged else ""
        shown.add_column(column.title, footer, justify="right")
    for row in rows:
        cells = [column.form.format(row[name]) for name, column in columns.items()]
        shown.add_row(f"{row['tasks']:,}", f"{row['workers']:,}", *cells)
    return shown


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw manager time per task and memory per vertex, as tasks and workers grow."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [
        (name, title)
        for name, title in (
            ("loop_us", "manager time per task (µs)"),
            ("memory_per_vertex", "manager memory per vertex (bytes)"),
        )
        if name in rows[0]
    ]
    figure, all_axes = plt.subplots(
        1, len(names), figsize=(4.5 * len(names), 3.4), layout="constrained", squeeze=False
    )
    for axes, (name, title) in zip(all_axes[0], names, strict=True):
        for workers, marker in zip(sorted({row["workers"] for row in rows}), "os^Dv", strict=False):
            points = sorted((row["tasks"], row[name]) for row in rows if row["workers"] == workers)
            axes.plot(*zip(*points, strict=True), marker=marker, label=f"{workers:,} workers")
        least = min(row[name] for row in rows)
        axes.axhspan(least, FLAT * least, color="0.9", zorder=0, label=f"within {FLAT} times")
        if name == "memory_per_vertex":
            axes.axhline(MEMORY, color="0.4", linestyle="--", label="budget at a million")
        axes.set_xscale("log")
        axes.set_ylim(0, None)
        axes.set_xlabel("tasks")
        axes.set_title(title, fontsize="medium")
        axes.grid(axis="y", alpha=0.4)
        axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
