from __future__ import annotations

import contextlib
import os

import pytest

from tests.cluster import adl_job, environment_archive
from tests.cluster.network_namespaces import Hosts, missing
from tests.harness.processes import start_local_cluster


def pytest_collection_modifyitems(items):
    # The first test that needs a Debian or a pool makes it, which takes as long as a mirror and a disk take.
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture
def hosts():
    """Makes hosts with networks of their own."""
    if reason := missing():
        pytest.skip(reason)
    with contextlib.closing(Hosts()) as hosts:
        yield hosts


@pytest.fixture
def local_cluster(hosts, tmp_path, monkeypatch):
    """Starts managers and workers, and ends them before their hosts go."""
    with start_local_cluster(tmp_path, monkeypatch) as local_cluster:
        yield local_cluster


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """This Python, with what calls need."""
    return environment_archive.write(tmp_path_factory.mktemp("archive") / "python.tar", ("cloudpickle",))


@pytest.fixture(scope="session")
def queries(tmp_path_factory):
    """The queries of the demo, and an environment for them."""
    pytest.importorskip("coffea", reason="the demo needs the HEP stack (coffea with dask-awkward, hist)")
    with adl_job.queries(tmp_path_factory.mktemp("adl")) as queries:
        yield queries
