from __future__ import annotations

import contextlib

import pytest

from tests.cluster.hosts import Hosts, missing
from tests.support import yard_in


@pytest.fixture
def hosts():
    """Makes hosts with networks of their own."""
    if reason := missing():
        pytest.skip(reason)
    with contextlib.closing(Hosts()) as hosts:
        yield hosts


@pytest.fixture
def yard(hosts, tmp_path, monkeypatch):
    """Starts managers and workers, and ends them before their hosts go."""
    with yard_in(tmp_path, monkeypatch) as yard:
        yield yard
