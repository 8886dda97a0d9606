"""Each public name of TaskVine exists here, with a test of its effect; what is left out is named."""

from __future__ import annotations

import ast
import functools
import inspect
from collections import Counter
from pathlib import Path

import pytest

from tests.taskvine_parity import read_rows
from vinecore.protocol.taskvine_modules import TaskVineModule

ROOT = Path(__file__).parents[1]
ROWS = read_rows()
CLASSES = {
    "Manager", "Factory", "File", "Task", "PythonTask", "FunctionCall", "LibraryTask", "FuturesExecutor",
    "VineFuture", "FutureFunctionCall", "FuturePythonTask", "DaskVine", "DaskVineDag",
}  # fmt: skip
NUMBER_OF_NAMES = 234
"""Public names of these classes in TaskVine, constructors and one setter included."""
MAX_LEFT_OUT = 3
NOT_CALLED_BY_PROGRAMS = {("Manager", "__exit__"), ("Factory", "__exit__"), ("File", "__init__")}
TASKVINE = TaskVineModule("ndcctools.taskvine")
FUTURES = TaskVineModule("ndcctools.taskvine.futures")


@functools.cache
def find_tests(path: str) -> frozenset[str]:
    """Return the tests of a file, those of a class with its name: CLASS::FUNCTION."""
    tree = ast.parse((ROOT / path).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    scopes = [("", tree.body), *((f"{node.name}::", node.body) for node in classes)]
    return frozenset(
        f"{prefix}{node.name}"
        for prefix, body in scopes
        for node in body
        if isinstance(node, ast.FunctionDef)
    )


def test_names_exist_where_programs_look():
    """As programs for TaskVine import them."""
    for row in ROWS:
        if row.status == "left out":
            continue
        owner = FUTURES if row.class_name == "futures" else getattr(TASKVINE, row.class_name)
        name, _, setter = row.name.partition(".")
        found = getattr(owner, name)
        assert not setter or found.fset, row


def test_parameters_have_their_names_and_order():
    """Programs give parameters by name or by position; a note says where only the latter works."""
    for row in ROWS:
        if (
            not row.parameters
            or row.status == "left out"
            or (row.class_name, row.name) in NOT_CALLED_BY_PROGRAMS
        ):
            continue
        theirs = row.parameters.split(",")
        found = inspect.signature(getattr(getattr(TASKVINE, row.class_name), row.name)).parameters
        ours = [name for name in found if name in theirs]
        by_position = "by position" in row.note
        assert (set(ours) != set(theirs)) == by_position, row
        positional = [name for name in ours if found[name].kind is found[name].POSITIONAL_OR_KEYWORD]
        assert by_position or positional == theirs[: len(positional)], row


def test_every_name_has_an_existing_test():
    """The file of the test has the name. What is left out may have none."""
    for row in ROWS:
        if row.status != "left out" or row.test:
            path, _, test = row.test.partition("::")
            assert test in find_tests(path), row
            name = row.name.partition(".")[0]
            assert name.startswith("__") or name in (ROOT / path).read_text(), row


def test_table_is_complete():
    names = Counter((row.class_name, row.name) for row in ROWS)
    assert set(names.values()) == {1}
    assert {class_name for class_name, _name in names} == {*CLASSES, "futures"}
    assert sum(class_name in CLASSES for class_name, _name in names) >= NUMBER_OF_NAMES


def test_few_names_are_left_out():
    assert {row.status for row in ROWS} == {"same", "better", "left out"}
    left_out = [row for row in ROWS if row.status == "left out"]
    assert len(left_out) <= MAX_LEFT_OUT
    assert all(row.note for row in left_out)


@pytest.mark.parametrize("status", ["better", "left out"])
def test_differences_are_explained(status):
    assert [row for row in ROWS if row.status == status and not row.note] == []
