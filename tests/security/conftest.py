from __future__ import annotations

import pytest

from tests.harness.processes import start_local_cluster


@pytest.fixture
def local_cluster(tmp_path, monkeypatch):
    """Starts managers and workers in a folder of their own, and ends them."""
    with start_local_cluster(tmp_path, monkeypatch) as local_cluster:
        yield local_cluster
