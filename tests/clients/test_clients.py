"""Projects that were written for TaskVine run unchanged, and compute what their local executors compute."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import PATIENCE_S, free_port, variables_of_new_user

PROGRAMS = Path(__file__).parent / "programs"
HOW = "make test-clients installs it"


@pytest.fixture
def environment(tmp_path):
    """Variables of a user of its own, whose `python` is this one."""
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    return {**variables_of_new_user(tmp_path), "PATH": path}


@pytest.fixture
def run(tmp_path, environment):
    """Run a program in a folder of its own; return the last line of its output, from JSON."""

    def run(program, *arguments, compat=True):
        command = [sys.executable, "-W", "ignore", *(("-m", "vinecore.compat.cli") if compat else ())]
        ended = subprocess.run(
            [*command, str(PROGRAMS / program), *arguments], cwd=tmp_path, env=environment, check=False,
            capture_output=True, text=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-5000:]
        return json.loads(ended.stdout.splitlines()[-1])

    return run


@pytest.fixture
def worker(environment, tmp_path):
    """Start a worker by hand for a manager that will listen on a free port; return the port."""
    port = free_port()
    # a worker does not begin without the user's secret, which a manager makes
    code = (
        "from vinecore.security.shared_secret import load_or_create_user_secret; load_or_create_user_secret()"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    command = [sys.executable, "-m", "vineworker", "--cores", "2", "--memory", "2000", "--disk", "2000"]
    with (
        (tmp_path / "worker.log").open("w") as log,
        subprocess.Popen(
            [*command, "localhost", str(port)], cwd=tmp_path, env=environment, stdout=log, stderr=log
        ) as process,
    ):
        yield port
        process.terminate()


def test_coffeas_runner_equals_iterative_executor(run, tmp_path):
    """Coffea's executor fills the histograms of its iterative executor, with TLS, retries and an extra file."""
    pytest.importorskip("coffea", reason=f"coffea is not installed: {HOW}")
    from daskvine.demo.nanoaod import write_dataset

    (tmp_path / "extra.txt").write_text("sent along")
    paths = write_dataset(tmp_path / "data", files=3, events=2000)
    files = {"one": {"files": {str(path): "Events" for path in paths[:1]}},
             "two": {"files": {str(path): "Events" for path in paths[1:]}}}  # fmt: skip
    found, expected = run("coffea_runner.py", json.dumps(files))
    assert found == expected
    assert {name: one[0] for name, one in found.items()} == {"one": 2000, "two": 4000}
    assert found["one"][2] == ["sent along"]


@pytest.mark.parametrize("mode", ["regular", "serverless"])
@pytest.mark.parametrize("started", ["by factory", "by hand"])
def test_parsl_equals_threads(run, request, mode, started):
    """Parsl's executor returns the values and exceptions of its threads, in both modes."""
    pytest.importorskip("parsl", reason=f"parsl is not installed: {HOW}")
    where = [] if started == "by factory" else [str(request.getfixturevalue("worker"))]
    expected = run("parsl_apps.py", "threads", compat=False)
    assert expected == [16, 46, "ValueError('bad 3')", "hello"]
    found = run("parsl_apps.py", mode, *where)
    assert found == (expected if mode == "regular" else expected[:3])


def test_dynamic_data_reduction(run):
    """DDR reduces each data set with each processor."""
    # which cannot be imported without TaskVine's names
    if importlib.util.find_spec("dynamic_data_reduction") is None:
        pytest.skip(f"dynamic_data_reduction is not installed: {HOW}")
    found = run("dynamic_reduction.py")
    assert found == {"double": {"few": 30, "more": 120}, "square": {"few": 55, "more": 1400}}


def test_vine_reduce_equals_local_distributor(run):
    """vine_reduce computes what its local distributor computes."""
    pytest.importorskip("vine_reduce", reason=f"vine_reduce is not installed, it needs Python 3.12.11: {HOW}")
    expected = run("vine_reduce_sums.py", "local", compat=False)
    assert run("vine_reduce_sums.py", "vine") == expected
    assert expected["many/sum"] == sum(range(40)) + sum(range(25))
