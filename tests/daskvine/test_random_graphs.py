"""Random graphs of all kinds of functions, computed again after edits, find what dask's synchronous scheduler finds.

`python -m tests.random_graphs` does the same by the thousand; its `--seed` computes one of these cases again.
"""

from __future__ import annotations

import pytest

from daskvine import DaskVine
from tests.random_graphs.cases import make_case
from tests.random_graphs.kinds import EDITS, KINDS
from tests.random_graphs.leftovers import nothing_left_in
from tests.random_graphs.lives import compute_lives
from tests.random_graphs.program import PLACES
from tests.random_graphs.runner import home_in, run_case

pytestmark = pytest.mark.filterwarnings("ignore:a vertex warns")

CASES, AT_ONCE = 120, 10
OF_MODULES = 1401
CASES_OF_LIVES = 8
MODULES = frozenset({*PLACES, "shift", "comment"} - {"error"})
"""Edits of modules that are imported again."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder that this program runs in meanwhile."""
    with home_in(tmp_path_factory.mktemp("home")) as folder:
        yield folder


@pytest.fixture(scope="module")
def vine(home, tmp_path_factory):
    with (
        nothing_left_in(tmp_path_factory.mktemp("temporary") / "tmp"),
        DaskVine.local(workers=2, cores=1, memory_mb=2000, disk_mb=2000) as m,
    ):
        yield m


def compute(vine, home, first, without):
    """Compute some cases, until one is wrong; what is printed says how to compute it again."""
    left_out = "".join(f" --without {name}" for name in sorted(without))
    for seed in range(first, first + AT_ONCE):
        case = make_case(seed, without)
        print(f"python -m tests.random_graphs --cases 1 --seed {seed} --show{left_out}\n{case}")
        run_case(vine, case, home)


@pytest.mark.parametrize("first", range(1, CASES, AT_ONCE))
def test_edited_graph_agrees_with_dask(vine, home, first):
    """A graph finds what dask finds each time after an edit."""
    compute(vine, home, first, MODULES)


@pytest.mark.parametrize("first", range(OF_MODULES, OF_MODULES + 60, AT_ONCE))
def test_edited_module_agrees_with_dask(vine, home, first):
    """A graph finds what dask finds each time after an edit of a module."""
    compute(vine, home, first, frozenset(EDITS) - MODULES)


def test_all_kinds_of_edits_are_generated():
    """All kinds of functions and edits are among them."""
    cases = [make_case(seed, MODULES) for seed in range(1, CASES + 1)]
    cases += [make_case(seed, frozenset(EDITS) - MODULES) for seed in range(OF_MODULES, OF_MODULES + 60)]
    kinds = {vertex.kind.name for case in cases for vertex in case.vertices}
    edits = {
        edit for case in cases for vertex in case.vertices for edit in vertex.kind.edits if edit in case.edits
    }
    assert kinds == KINDS.keys()
    assert edits == {edit for kind in KINDS.values() for edit in kind.edits}


def test_killed_edited_program_agrees_with_dask(tmp_path):
    """A program that is killed goes on after an edit and finds what dask finds."""
    assert compute_lives(tmp_path, 100, CASES_OF_LIVES, frozenset()) == []
