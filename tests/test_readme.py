"""The first example of the README runs as it is printed, wherever a new user types it: in the folder of the data, which is not that of the project."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import PATIENCE_S

pytest.importorskip("coffea", reason="the example needs the HEP packages")

README = (Path(__file__).parents[1] / "README.md").read_text()
EVENTS = 1000


@pytest.fixture(scope="module")
def example() -> str:
    return re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with nano.root."""
    from daskvine.demo.nanoaod import write_dataset

    folder = tmp_path_factory.mktemp("analysis")
    (path,) = write_dataset(folder, files=1, events=EVENTS)
    path.rename(folder / "nano.root")
    return folder


def run(folder, *command, text=None):
    variables = {
        **os.environ,
        "HOME": str(folder),  # where the interpreter writes its history
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONWARNINGS": "ignore",
    }
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=variables, input=text, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip


@pytest.fixture(scope="module")
def histogram(example, folder):
    """What the example prints if dask's synchronous scheduler computes."""
    program, computing, _rest = example.partition("with DaskVine")
    assert computing
    program += 'print(q1_hist.compute(scheduler="synchronous"))'
    printed = run(folder, "-c", program).stdout
    assert len(printed.splitlines()) > 50
    return printed


def test_as_a_script(example, folder, histogram, tmp_path):
    script = tmp_path / "first.py"  # elsewhere than the data
    script.write_text(example)
    ended = run(folder, str(script))
    assert histogram in ended.stdout, ended


def test_as_a_command(example, folder, histogram):
    ended = run(folder, "-c", example)
    assert histogram in ended.stdout, ended


def test_in_the_plain_interpreter(example, folder, histogram):
    ended = run(folder, "-i", text=example)
    assert histogram in ended.stdout, ended
    assert "Error" not in ended.stderr


def test_from_standard_input(example, folder, histogram):
    """As in `python < first.py`: there is no file that a process could import the functions from."""
    ended = run(folder, text=example)
    assert histogram in ended.stdout, ended


def test_in_a_notebook(example, folder, histogram):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    cells = [nbformat.v4.new_code_cell(paragraph) for paragraph in example.split("\n\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client.NotebookClient(
        notebook, timeout=PATIENCE_S, resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert printed == histogram, outputs
