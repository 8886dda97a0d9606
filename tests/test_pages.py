"""The examples of the pages run as they are printed, and the commands in the pages have the options that they show."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vinecore.security.shared_secret import write_secret

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TIMEOUT_S = 240
# By page and number of the block.
RUN_ELSEWHERE = {
    ("README.md", 0): "tests/test_readme.py",
    ("docs/files.md", 0): "needs a server and a proxy: tests/vinecore/manager/test_urls.py",
    ("docs/library-programs.md", 0): "tests/vinecore/manager/test_library_programs.py",
    ("docs/library-programs.md", 1): "tests/vinecore/manager/test_library_programs.py",
    ("docs/running.md", 0): "needs a packed environment: tests/cluster/test_condor.py",
    ("docs/running.md", 1): "needs a Dask cluster: tests/cluster/test_dask.py",
}
# What the pages take for granted: a collection, a manager with a worker, imports.
PRELUDE = """
import dask
import numpy
import pandas
from daskvine import DaskVine
from vinecore import Task

hist = dask.delayed(sum)([dask.delayed(len)("abc"), 4])
parts = [dask.delayed(numpy.array)([n]) for n in range(20)]
"""


def find_examples() -> dict[str, str]:
    """Return the Python blocks that are run here, by page and number."""
    found = {}
    for path in PAGES:
        page = str(path.relative_to(ROOT))
        for number, block in enumerate(
            re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        ):
            if (page, number) not in RUN_ELSEWHERE:
                found[f"{page}-{number}"] = block
    return found


EXAMPLES = find_examples()


@pytest.fixture
def variables(tmp_path):
    """Variables of a user whose secret, registry and home are in the folder of the test."""
    secret = tmp_path / "config" / "daskvine" / "secret"
    secret.parent.mkdir(parents=True, mode=0o700)
    write_secret(secret)
    own = {
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "VINE_REGISTRY": str(tmp_path / "registry"),
    }
    return {**os.environ, **own, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@contextlib.contextmanager
def run_worker(name, variables, folder):
    """Run a worker that looks for a manager by its name."""
    command = [sys.executable, "-m", "vineworker", "-M", name, "--cores", "2", "--single-shot"]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, cwd=folder, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, variables, tmp_path):
    # The port may be taken on this machine.
    block = EXAMPLES[name].replace("port=9123", "port=0")
    has_manager = "as m:" in block or "m = " in block
    script = tmp_path / "example.py"
    script.write_text(PRELUDE + ("" if has_manager else "m = DaskVine.local(cores=12)\n") + block)
    with (
        run_worker("my-analysis", variables, tmp_path) if "my-analysis" in block else contextlib.nullcontext()
    ):
        ended = subprocess.run(
            [sys.executable, str(script)], cwd=tmp_path, env=variables, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


@functools.cache
def read_options(command: str) -> set[str]:
    """Return the options in the help of a command."""
    module, _, function = re.search(
        rf'^{command} = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )[1].partition(":")
    code = f"import sys; sys.argv[0] = {command!r}; from {module} import {function}; {function}()"
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "COLUMNS": "400"}
    text = subprocess.run(
        [sys.executable, "-c", code, "--help"], env=variables, capture_output=True, text=True, check=True
    ).stdout
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text))


def find_commands(page: str) -> list[list[str]]:
    """Return the words of the commands of a page, in blocks and in sentences."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE))
    words = [line.partition("#")[0].split() for line in lines]
    return [line for line in words if line and re.fullmatch("vine_[a-z_]+", line[0])]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_have_the_options_of_the_page(path):
    unknown = set()
    for command, *words in find_commands(path.read_text()):
        # Quoted words are options of other programs.
        plain = re.sub(r"\"[^\"]*\"|'[^']*'", "", " ".join(words)).split()
        for word in plain:
            option = re.match(r"--?[A-Za-z][\w-]*", word)
            if option and option[0] not in read_options(command):
                unknown.add(f"{command} {option[0]}")
    assert unknown == set()
