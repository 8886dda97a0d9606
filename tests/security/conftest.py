from __future__ import annotations

import pytest

from tests.harness.processes import yard_in


@pytest.fixture
def yard(tmp_path, monkeypatch):
    """Starts managers and workers in a folder of their own, and ends them."""
    with yard_in(tmp_path, monkeypatch) as yard:
        yield yard
