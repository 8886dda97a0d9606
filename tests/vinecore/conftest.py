from __future__ import annotations

import pytest

from tests.harness.processes import PATIENCE_S, start_local_cluster


@pytest.fixture
def local_cluster(tmp_path, monkeypatch):
    """Starts managers and workers in a folder of their own, and ends them."""
    with start_local_cluster(tmp_path, monkeypatch) as local_cluster:
        yield local_cluster


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory):
    """The same for all tests of a module."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        start_local_cluster(tmp_path_factory.mktemp("local_cluster"), monkeypatch) as local_cluster,
    ):
        yield local_cluster


@pytest.fixture(scope="module")
def shared_manager(shared_cluster):
    """A manager with one worker of four cores, which the tests of a module have in common."""
    m = shared_cluster.start_manager()
    shared_cluster.start_worker(m, "--cores", "4")
    m.wait_for_workers(1, PATIENCE_S)
    return m


@pytest.fixture
def m(shared_manager):
    """The manager of the module; whatever a test has forgotten is fetched from it afterwards."""
    yield shared_manager
    shared_manager.cancel_all()
    while not shared_manager.empty():
        shared_manager.wait(PATIENCE_S)


@pytest.fixture
def run(m):
    """Submit tasks and give them when all have ended, in the order in which they were submitted."""

    def run(*tasks):
        numbers = [m.submit(task) for task in tasks]
        ended = {}
        while len(ended) < len(tasks):
            task = m.wait(PATIENCE_S)
            assert task is not None
            ended[task.id] = task
        found = [ended[number] for number in numbers]
        return found[0] if len(found) == 1 else found

    return run
