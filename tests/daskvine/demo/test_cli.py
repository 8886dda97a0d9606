"""The command, with a stand-in for the manager: any ``get`` will do."""

from __future__ import annotations

import contextlib
import types

import pytest

pytest.importorskip("coffea", reason="the demo needs the HEP stack (coffea with dask-awkward, hist)")

import dask
from click.testing import CliRunner

import daskvine
from daskvine.demo.cli import main
from daskvine.demo.queries import QUERIES

SMALL = ["--files", "1", "--events", "300", "--steps", "2", "--cores", "2"]


def lossy_get(graph, keys, **options):
    """A scheduler that returns twice the right histograms."""
    return [[2 * histogram for histogram in results] for results in dask.get(graph, keys, **options)]


@pytest.fixture
def started(monkeypatch):
    """Start managers that run ``started.get``; ``started.cores`` are those of each."""
    record = types.SimpleNamespace(get=dask.get, cores=[])

    @contextlib.contextmanager
    def local(cores):
        record.cores.append(cores)
        yield types.SimpleNamespace(get=record.get, last_run=types.SimpleNamespace(vertices=5))

    monkeypatch.setattr(daskvine, "DaskVine", types.SimpleNamespace(local=local), raising=False)
    return record


def run(folder, *arguments):
    return CliRunner().invoke(main, [*SMALL, "--folder", str(folder), *arguments])


def test_demo_computes_checks_and_draws_queries(started, tmp_path):
    """The demo computes checks and draws all queries."""
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in QUERIES)
    assert started.cores == [2]
    assert len(list((tmp_path / "plots").glob("*.png"))) == len(QUERIES)


def test_without_plots_none_are_drawn(started, tmp_path):
    assert run(tmp_path, "--no-plots").exit_code == 0
    assert not (tmp_path / "plots").exists()


def test_a_wrong_bin_is_a_failure(started, tmp_path):
    started.get = lossy_get
    result = run(tmp_path, "--no-plots")
    assert result.exit_code == 1
    assert "differs" in result.output


def test_without_the_check_nothing_is_compared(started, tmp_path):
    started.get = lossy_get
    assert run(tmp_path, "--no-plots", "--no-check").exit_code == 0
