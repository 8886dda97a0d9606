"""Directories that tasks make and read, wherever those run."""

from __future__ import annotations

import pytest

from tests.harness.processes import PATIENCE_S
from vinecore import Task


@pytest.fixture
def pair(local_cluster):
    """A manager with two workers of one core."""
    m = local_cluster.start_manager()
    for _ in range(2):
        local_cluster.start_worker(m, "--cores", "1")
    m.wait_for_workers(2, PATIENCE_S)
    return m


def one_core(command, inputs=(), outputs=()):
    task = Task(command, cores=1)
    for file, name in inputs:
        task.add_input(file, name)
    for file, name in outputs:
        task.add_output(file, name)
    return task


def results(m):
    ended = []
    while not m.empty():
        ended.append(m.wait(PATIENCE_S))
        assert ended[-1] is not None, m.stalled_reason
    return ended


@pytest.mark.parametrize("peers", [True, False])
def test_a_directory_reaches_tasks_on_all_workers(pair, peers, tmp_path):
    if not peers:
        pair.disable_peer_transfers()
    made = pair.declare_temp()
    pair.submit(
        one_core(
            "mkdir -p d/deep; echo hello > d/deep/x; chmod 755 d/deep/x; ln -s deep/x d/link",
            outputs=[(made, "d")],
        )
    )
    assert pair.wait(PATIENCE_S).successful()
    # each holds its worker until the other one has come, so that both workers have to have the directory
    for mine, other in (("a", "b"), ("b", "a")):
        meet = f"touch {tmp_path}/{mine}; until [ -e {tmp_path}/{other} ]; do sleep 0.01; done"
        pair.submit(one_core(f"{meet}; cat d/link; test -x d/deep/x", inputs=[(made, "d")]))
    assert [(task.output, task.exit_code) for task in results(pair)] == [("hello\n", 0)] * 2


def test_wanted_output_directory_is_uploaded(pair, tmp_path):
    """A directory that the user wants is brought."""
    place = pair.declare_file(tmp_path / "brought")
    pair.submit(one_core("mkdir -p d/empty; echo hello > d/x", outputs=[(place, "d")]))
    assert results(pair)[0].successful()
    assert (tmp_path / "brought" / "x").read_text() == "hello\n"
    assert (tmp_path / "brought" / "empty").is_dir()
