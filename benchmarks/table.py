"""One table of everything, for people; and a record, for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.cases import BARE, TOTAL, Case
from benchmarks.contenders import CONTENDERS

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contest import Row
    from benchmarks.sizes import Size

ABSENT = "-"


def table(rows: list[Row], size: Size, rounds: int) -> Table:
    """Build a table with the medians, the ratio and the budget of every row."""
    caption = f"medians of {rounds} rounds in turn" if rounds > 1 else "one round"
    shown = Table(title=f"daskvine and its peers, {caption}", title_justify="left")
    shown.add_column("what", no_wrap=True)
    shown.add_column("unit", no_wrap=True)
    for heading, _class in CONTENDERS.values():
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("ratio", justify="right", no_wrap=True)
    shown.add_column("to", no_wrap=True)
    shown.add_column("budget", justify="right", no_wrap=True)
    shown.add_column("met", justify="center", no_wrap=True)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        shown.add_row(
            _title(row, size),
            row.case.unit,
            *(_number(row.median(name)) for name in CONTENDERS),
            _number(row.ratio()),
            ABSENT if row.ratio() is None else row.case.against,
            _budget(row.case),
            _verdict(row),
            end_section=following is not None and following.case.name == "adl" != row.case.name,
        )
    return shown


def record(rows: list[Row], machine: dict[str, Any], size: Size, rounds: int) -> dict[str, Any]:
    """Everything that was measured, in seconds per call, vertex, compute or GB, or in the unit of the row."""
    return {
        "machine": machine,
        "rounds": rounds,
        "size": {name: value for name, value in vars(size).items() if name != "paths"},
        "rows": [
            {
                "name": row.name,
                "case": row.case.name,
                "unit": row.case.unit,
                "medians": {name: row.median(name) for name in row.seconds},
                "seconds": row.seconds,
                "against": row.case.against,
                "ratio": row.ratio(),
                "budget": row.case.budget,
                "budget_is_ratio": row.case.relative,
                "met": row.meets(),
                "bare_met": row.meets(BARE),
            }
            for row in rows
        ],
    }


def save(path: Path, measured: dict[str, Any]) -> None:
    """Write the record."""
    path.write_text(json.dumps(measured, indent=1) + "\n")


def _title(row: Row, size: Size) -> str:
    amounts = {
        "calls": f"{size.calls:,}",
        "batched": f"{5 * size.calls:,}",
        "graph": f"{size.vertices:,} vertices",
        "chain": f"{size.hops:,} hops",
        "tasks": f"{size.tasks} vertices",
        "warm": f"{size.computes} times",
        "transfer": f"{size.file_mb} MB",
        "compared": f"{size.file_mb} MB",
        "load": f"{size.array_mb} MB",
        "sent": f"{size.branches:,} branches",
    }
    if row.case.name == "adl":
        if row.part == TOTAL:
            return f"ADL {row.part}, {size.files} files of {size.events:,} events"
        return f"ADL {row.part}"
    amount = amounts.get(row.case.name)
    return f"{row.case.title} ({amount})" if amount else row.case.title


def _number(value: float | None) -> str:
    """Three digits that mean something."""
    if value is None:
        return ABSENT
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.3f}"


def _verdict(row: Row) -> str:
    met = row.meets()
    if met is None:
        return ABSENT
    if met:
        return "[green]yes[/green]"
    # a machine that is slow today, or has no second core to give, proves nothing
    return "no, nor bare" if row.meets(BARE) is False else "[red]no[/red]"


def _budget(case: Case) -> str:
    if case.budget is None:
        return ABSENT
    return f"{'≥' if case.is_rate else '≤'} {case.budget:,g}" + (" (ratio)" if case.relative else "")
