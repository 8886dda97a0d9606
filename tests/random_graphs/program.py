"""The program of a user that a case is about: modules of his own, files and variables, and how they are edited."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from tests.random_graphs.cases import FILES, Case

TEXTS = Path(__file__).with_name("modules")
PLACES = {
    "constant": "9001", "table": "9002", "code": "9003", "remembered": "9004", "cut": "9005", "limit": "9006", "raising": "9007",
    "error": "9008", "travels": "9009",
}  # fmt: skip
"""Numbers in the texts of the modules, by what sets them."""

NOTEBOOK = """
def notebook(*values):
    return own.total(values) + NUMBER + own.OFFSET
"""
DRAWING_NOTEBOOK = """
import random, numpy

class Held:
    generator = numpy.random.default_rng()

held = {"draws": [random.Random().random, Held().generator.random]}

def notebook(*values):
    return sum(map(float, [draw() for draw in held["draws"]]))
"""
A_DAY_S = 86400.0
WORD = "RANDOM_GRAPHS_WORD"


class Program:
    """Writes the modules and files of a case, imports them, and edits them.

    Parameters
    ----------
    case
        The case.
    home
        The folder that the program runs in, which is on the path, and where the home of the user is.
    edits
        What was done in earlier lives of the program.
    """

    def __init__(self, case: Case, home: Path, edits: tuple[str, ...] = ()) -> None:
        self.case, self.home = case, home
        self.folder = home / f"case_{case.seed}"
        self.folder.mkdir(exist_ok=True)
        self.numbers = {name: place for place, name in enumerate(PLACES, 11)}
        self.numbers |= {
            "shift": 31,
            "step": 32,
            "parameter": 0,
            "notebook": 33,
            "environ": 4,
            "file": 40,
            "comment": 0,
        }
        self._writings = 0
        for edit in edits:
            self._change(edit)
        prefix = "" if case.late else f"case_{case.seed}."
        suffix = f"_{case.seed}" if case.late else ""
        self._names = {name: f"{prefix}{name}{suffix}" for name in ("limits", "travels", "own")}
        self._write()
        self._modules: dict[str, ModuleType] = {}

    def start(self) -> None:
        """Import the modules."""
        if self.case.late:
            sys.path.append(str(self.folder))
        importlib.invalidate_caches()
        self._modules = {name: importlib.import_module(full) for name, full in self._names.items()}
        cloudpickle.register_pickle_by_value(self._modules["travels"])

    def end(self) -> None:
        """Forget them, and remove the files; what a vertex still writes after its graph has failed goes with the folder around."""
        if "travels" in self._modules:
            cloudpickle.unregister_pickle_by_value(self._modules["travels"])
        for name in (*self._names.values(), self.folder.name):
            sys.modules.pop(name, None)
        if self.case.late:
            sys.path.remove(str(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def own(self) -> Any:
        """The module with the functions."""
        return self._modules["own"]

    @property
    def travels(self) -> Any:
        """The module that travels by value."""
        return self._modules["travels"]

    def notebook(self) -> Any:
        """Give a function that a cell of a notebook has defined."""
        namespace = {"__name__": "__main__", "own": self.own, "NUMBER": self.numbers["notebook"]}
        exec(NOTEBOOK, namespace)
        return namespace["notebook"]

    def drawing_notebook(self) -> Any:
        """Give a function of a notebook that draws from generators in containers."""
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(DRAWING_NOTEBOOK, namespace)
        return namespace["notebook"]

    @property
    def variables(self) -> dict[str, str]:
        """Of the environment."""
        return {WORD: "w" * self.numbers["environ"]}

    def written(self, number: int) -> Path:
        """The file that a vertex writes."""
        return self.folder / f"written-{number}"

    def relative(self, path: Path) -> str:
        """The same from the folder that the program runs in."""
        return str(path.relative_to(self.home))

    def edit(self, edit: str) -> None:
        """Edit something, and import again what was edited."""
        if edit == "written":
            for path in self.folder.glob("written-*"):
                path.unlink()
        self._change(edit)
        self._write()
        if edit in PLACES or edit in ("shift", "comment"):
            for module in self._modules.values():
                importlib.reload(module)

    def _change(self, edit: str) -> None:
        if edit == "raising":
            self.numbers[edit] = not self.numbers[edit]
        elif edit in self.numbers:
            self.numbers[edit] += 1

    def _write(self) -> None:
        self._writings += 1
        (self.folder / "__init__.py").touch()
        for name, full in self._names.items():
            self._replace(self.folder / f"{full.rpartition('.')[2]}.py", self._text(name))
        settings = {"shift": self.numbers["shift"], "step": self.numbers["step"]}
        self._replace(self.folder / "own.json", json.dumps(settings))
        for number in range(1, FILES + 1):
            (self.folder / f"file-{number}").write_text(str(self.numbers["file"] + number))

    def _text(self, name: str) -> str:
        text = (TEXTS / f"{name}.py").read_text()
        for what, place in PLACES.items():
            text = text.replace(place, str(int(self.numbers[what])))
        limits = self._names["limits"]
        text = re.sub(r"^import limits$", f"import {limits} as limits", text, flags=re.MULTILINE)
        text = text.replace("from limits import", f"from {limits} import").replace('"limits"', f'"{limits}"')
        return f"{text}\n# {self.numbers['comment']}\n"

    def _replace(self, path: Path, text: str) -> None:
        """Write a text as editors do; the time changes by seconds, because that is what Python's own cache of byte code compares."""
        if path.exists() and path.read_text() == text:
            return
        new = path.with_suffix(".new")
        new.write_text(text)
        written = (
            new.stat().st_mtime - A_DAY_S
            if not path.exists()
            else max(new.stat().st_mtime, path.stat().st_mtime + 2)
        )
        os.utime(new, (written, written))
        new.replace(path)
