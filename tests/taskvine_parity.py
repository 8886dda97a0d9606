"""The public names of TaskVine's Python classes, each with what this project has for it.

The rows are in ``taskvine_parity.tsv``, from which ``python -m tests.test_docs`` writes the tables
of docs/taskvine.md.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_suffix(".tsv")


class Row(NamedTuple):
    """One public name of TaskVine."""

    class_name: str  # "futures" for names of that module
    name: str  # "NAME.setter" for the setter of a property
    status: str  # "same", "better" or "left out"
    note: str  # in Markdown
    test: str  # of the effect: FILE::[CLASS::]FUNCTION
    parameters: str  # names in TaskVine, with commas


def read_rows() -> list[Row]:
    """Return the rows in the order of their classes."""
    _head, *lines = TABLE.read_text().splitlines()
    return [Row(*line.split("\t")) for line in lines]


def describe() -> str:
    """Return a table in Markdown for each class."""
    lines: list[str] = []
    for class_name, rows in itertools.groupby(read_rows(), lambda row: row.class_name):
        lines += [f"### {class_name}", "", "| name | here | note |", "| --- | --- | --- |"]
        lines += [f"| `{row.name}` | {row.status} | {row.note} |" for row in rows]
        lines.append("")
    return "\n".join(lines)
