"""The notebooks run from top to bottom, and what they show when they are opened is what they show when they are run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "coffea", reason="the notebooks need the HEP packages, which this environment does not have"
)
pytest.importorskip("nbclient", reason="the notebooks are run with nbclient")

FOLDER = Path(__file__).parents[2] / "notebooks"
sys.path.insert(0, str(FOLDER))

import nbformat  # noqa: E402
from refresh import execute  # noqa: E402


def shown(notebook: Any) -> list[tuple[str, list[str]]]:
    """What each code cell shows: its text, and that there is a picture."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = []
            for output in cell.outputs:
                # what a program says while it waits depends on how fast the machine is
                if output.get("name") == "stderr":
                    continue
                data = output.get("data", {})
                pictures = ["a picture"] if "image/png" in data else []
                texts = [] if pictures else [output.get("text", ""), data.get("text/plain", "")]
                outputs += [text for text in texts if text] + pictures
            cells.append((cell.source, outputs))
    return cells


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_saved_notebook_output_is_current(path: Path) -> None:
    """The saved output of a notebook is current."""
    assert shown(nbformat.read(path, as_version=4)) == shown(execute(path))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_saved_with_pictures(path: Path) -> None:
    assert (
        sum(outputs.count("a picture") for _source, outputs in shown(nbformat.read(path, as_version=4))) >= 3
    )
