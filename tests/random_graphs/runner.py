"""Computes cases with a vine, again after each edit, and compares with dask's synchronous scheduler."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask

from tests.random_graphs import building, oracle
from tests.random_graphs.cases import Case
from tests.random_graphs.program import PLACES, Program

IMPURE = ("random", "count", "time")


@contextlib.contextmanager
def home_in(folder: Path) -> Iterator[Path]:
    """Have this process run in a folder, which is on the path, and where the home of the user is."""
    before = os.getcwd(), os.environ.get("HOME")
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    os.environ["HOME"] = str(folder)
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        os.chdir(before[0])
        if before[1] is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = before[1]


def run_case(m: Any, case: Case, home: Path) -> None:
    """Compute a case, edit, and compute it again.

    Raises
    ------
    oracle.WrongValue
        Something was found that cannot be right.
    """
    program = Program(case, home)
    try:
        program.start()
        runs = Runs(m, program, reuse=case.reuse)
        runs.compute("the first time")
        for place, edit in enumerate(case.edits):
            program.edit(edit)
            if edit in PLACES or edit in ("shift", "comment"):
                runs.impure.start_again()
            runs.compute(f"after {', '.join(map(repr, case.edits[: place + 1]))}")
    finally:
        program.end()


def outcome_of(compute: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Give what a computation gives, or raises."""
    try:
        return compute(), None
    except Exception as error:  # noqa: BLE001 - is compared
        return None, error


class Runs:
    """The computations of one program.

    Parameters
    ----------
    m
        The vine.
    program
        The program.
    reuse
        What `get` is told; None for nothing.
    life
        How many lives the program has had before, whose results may be found.
    """

    def __init__(self, m: Any, program: Program, *, reuse: bool | None, life: int = 0) -> None:
        self._program, self._case, self._life = program, program.case, life
        self.impure = oracle.Impure(bool(reuse), earlier=life)
        self._options: dict[str, Any] = {
            "task_mode": self._case.task_mode,
            **({} if reuse is None else {"reuse": reuse}),
            "progress_disable": True,
        }
        self._get = m.get

    def compute(self, when: str) -> None:
        """Compute it with the vine and with dask's synchronous scheduler, and compare."""
        if any(vertex.kind.name == "environ" for vertex in self._case.vertices):
            self._options["env_vars"] = self._program.variables
        compute = {
            "tuples": self._compute_graph, "tasks": self._compute_graph, "delayed": self._compute_delayed, "bag": self._compute_elements,
            "array": self._compute_elements,
        }[self._case.form]  # fmt: skip
        compute(when)

    # ---- graphs

    @property
    def _names(self) -> list[str]:
        impure = [vertex.name for vertex in self._case.vertices if vertex.kind.trait in IMPURE]
        return list(dict.fromkeys([*self._case.outputs, *impure]))

    def _compute_graph(self, when: str) -> None:
        make = building.graph_of_tuples if self._case.form == "tuples" else building.graph_of_tasks
        names = self._names

        def with_vine() -> Any:
            return self._get(make(self._program, {}), names, **self._options)

        def with_dask(known: dict[str, Any]) -> Any:
            return dask.get(make(self._program, known), names)

        self._compare(names, with_vine, with_dask, when)

    def _compute_delayed(self, when: str) -> None:
        names = self._names

        def with_vine() -> Any:
            made = building.delayed_of(self._program, {})
            return dask.compute(*map(made.__getitem__, names), scheduler=self._get, **self._options)

        def with_dask(known: dict[str, Any]) -> Any:
            made = building.delayed_of(self._program, known)
            return dask.compute(*map(made.__getitem__, names), scheduler="sync")

        self._compare(names, with_vine, with_dask, when)

    def _compare(
        self,
        names: list[str],
        with_vine: Callable[[], Any],
        with_dask: Callable[[dict[str, Any]], Any],
        when: str,
    ) -> None:
        began = time.time_ns()
        found_values, error = outcome_of(with_vine)
        if error is not None:
            with self._surroundings():
                _values, expected_error = outcome_of(lambda: with_dask({}))
            oracle.check_error(error, expected_error, when)
            return
        values = dict(zip(names, found_values, strict=True))
        ended = time.time_ns()
        found = {
            v.name: (v.kind.trait, values[v.name]) for v in self._case.vertices if v.kind.trait in IMPURE
        }
        self.impure.check_random((name, value) for name, (trait, value) in found.items() if trait == "random")
        self.impure.check_times(
            ((name, value) for name, (trait, value) in found.items() if trait == "time"), began, ended
        )
        self.impure.check_counts([value for trait, value in found.values() if trait == "count"])
        self._check_files(values, when)
        with self._surroundings():
            expected = with_dask({name: value for name, (_trait, value) in found.items()})
        for name, value in zip(names, expected, strict=True):
            oracle.check_equal(values[name], value, f"{name}, {when}")

    def _check_files(self, values: dict[str, Any], when: str) -> None:
        for vertex in self._case.vertices:
            if vertex.kind.trait == "writes" and vertex.name in values:
                path = self._program.written(int(vertex.name[1:]))
                text = path.read_text() if path.exists() else None
                oracle.check_equal(text, str(values[vertex.name]), f"the file of {vertex.name}, {when}")

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Have the variables here that the vertices have."""
        variables = self._options.get("env_vars", {})
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                del os.environ[name]

    # ---- bags and arrays

    def _compute_elements(self, when: str) -> None:
        make = building.bag_of if self._case.form == "bag" else building.array_of
        last = self._case.vertices[-1]
        lazy = make(self._program)
        asked = [lazy] if last.kind.trait or last.kind.gives != "number" else [lazy, lazy.sum()]
        found = dask.compute(*asked, scheduler=self._get, **self._options)
        if last.kind.trait == "random":
            self.impure.check_random(enumerate(list(found[0])))
        elif last.kind.trait == "count":
            self.impure.check_counts(list(map(int, found[0])))
        else:
            with self._surroundings():
                expected = dask.compute(*asked, scheduler="sync")
            oracle.check_equal(found, expected, when)
