"""The queries read their files from servers, and come out the same."""

from __future__ import annotations

import pytest

pytest.importorskip("coffea", reason="the demo needs the HEP stack (coffea with dask-awkward, hist)")

from daskvine import DaskVine
from daskvine.demo.queries import QUERIES, open_events
from daskvine.demo.reference import same
from daskvine.demo.runner import run_queries
from tests.harness.http_servers import web_server, xrootd_server


@pytest.fixture(scope="module")
def vine():
    with DaskVine.local(workers=1, cores=2, memory_mb=4000, disk_mb=4000) as m:
        yield m


@pytest.fixture(scope="module")
def over_http(dataset):
    with web_server(dataset[0].parent) as server:
        events = open_events([f"{server.url}/{path.name}" for path in dataset])
        before = len(server.asked)
        yield events
        assert len(server.asked) > before


@pytest.fixture(scope="module")
def over_root(dataset):
    pytest.importorskip("fsspec_xrootd", reason="needs fsspec-xrootd: pip install fsspec-xrootd")
    with xrootd_server() as server:
        yield open_events([server.put(path.name, path) for path in dataset])


@pytest.mark.parametrize("name", QUERIES)
@pytest.mark.parametrize("way", ["http", "root"])
def test_query_over_server_equals_local_files(vine, references, request, way, name):
    """A query over a server equals that over local files."""
    events = request.getfixturevalue(f"over_{way}")
    (result,) = run_queries(
        vine.get, events, [QUERIES[name]], task_mode="function-calls", progress_disable=True
    )
    assert all(histogram.sum() > 0 for histogram in result.histograms)
    assert same(result.histograms, references[name])
