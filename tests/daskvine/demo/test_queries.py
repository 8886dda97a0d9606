"""The eight queries on dask equal the calculation without it; the pieces the command is made of."""

from __future__ import annotations

import pytest

pytest.importorskip("coffea", reason="the demo needs the HEP stack (coffea with dask-awkward, hist)")

import dask
import dask.threaded
import dask_awkward as dak
from rich.console import Console

from daskvine.demo.plots import draw_query, save_plots
from daskvine.demo.queries import QUERIES, open_events
from daskvine.demo.reference import compute_reference, empty_histograms, same
from daskvine.demo.runner import QueryResult, differing, result_table, run_queries

STEPS = 3


@pytest.fixture(scope="module")
def events(dataset):
    return open_events(dataset, steps_per_file=STEPS)


def vertices(histograms):
    """How many vertices a scheduler is handed for these histograms."""
    counts = []

    def get(graph, keys, **options):
        counts.append(len(graph))
        return dask.get(graph, keys, **options)

    dask.compute(*histograms, scheduler=get)
    return sum(counts)


@pytest.mark.parametrize("name", QUERIES)
def test_query_equals_reference_in_all_bins(events, references, name):
    """A query equals its reference bin for bin."""
    (result,) = run_queries(dask.get, events, [QUERIES[name]])
    assert all(histogram.sum() > 0 for histogram in result.histograms)
    assert same(result.histograms, references[name])


def test_result_is_independent_of_partitions(dataset, references):
    """The result does not depend on the partitions."""
    results = run_queries(dask.threaded.get, open_events(dataset), [QUERIES["Q6"], QUERIES["Q8"]])
    assert all(same(result.histograms, references[result.query.name]) for result in results)


def test_the_reference_needs_no_dask(dataset, monkeypatch):
    def refuse(*_arguments, **_options):
        pytest.fail("dask was asked to compute something")

    monkeypatch.setattr(dask.base, "compute", refuse)
    monkeypatch.setattr(dask.base.DaskMethodsMixin, "compute", refuse)
    assert compute_reference(dataset, ["Q1"])["Q1"][0].sum(flow=True) == 3000


def test_files_become_the_partitions_asked_for(dataset, events):
    assert events.npartitions == STEPS * len(dataset)


def test_a_small_file_becomes_no_empty_partitions(dataset):
    assert open_events(dataset[:1], steps_per_file=10_000).npartitions == 1500


def test_query_reads_only_needed_columns(events):
    """A query reads only the columns it needs."""
    (columns,) = dak.necessary_columns(QUERIES["Q1"].function(events)).values()
    assert columns == {"MET_pt"}


def test_only_the_sixth_query_has_two_histograms(events):
    assert isinstance(QUERIES["Q6"].function(events), tuple)
    assert [name for name, query in QUERIES.items() if len(query.axes) > 1] == ["Q6"]


def test_sixth_query_shares_arrays_between_vertices(events):
    """The histograms of the sixth query share arrays that cross vertices."""
    histograms = QUERIES["Q6"].histograms(events)
    alone = sum(vertices([histogram]) for histogram in histograms)
    assert vertices(histograms) > 2 * alone


def test_flow_bin_difference_is_noticed():
    """A difference in a flow bin is noticed."""
    one, other = empty_histograms(QUERIES["Q1"]), empty_histograms(QUERIES["Q1"])
    assert same(one, other)
    one[0].fill(1e6)
    assert not same(one, other)


def test_histograms_of_other_axes_differ():
    """Histograms of other axes or number are not the same."""
    assert not same(empty_histograms(QUERIES["Q1"]), empty_histograms(QUERIES["Q2"]))
    assert not same(empty_histograms(QUERIES["Q6"]), empty_histograms(QUERIES["Q6"])[:1])


def test_options_reach_get_and_vertices_are_counted(events):
    seen = {}

    def get(graph, keys, **options):
        seen.update(options)
        return dask.get(graph, keys)

    (result,) = run_queries(get, events, [QUERIES["Q1"]], lambda: 8, task_mode="function-calls")
    assert seen["task_mode"] == "function-calls"
    assert result.vertices == 8


def test_the_table_says_which_query_differs(references):
    wrong = QueryResult(QUERIES["Q2"], empty_histograms(QUERIES["Q2"]), 0.5)
    right = QueryResult(QUERIES["Q1"], references["Q1"], 0.25, vertices=1234)
    assert differing([right, wrong], references) == ["Q2"]
    assert differing([right, wrong], {}) == []
    console = Console(width=120)
    with console.capture() as capture:
        console.print(result_table([right, wrong], references))
    rows = [line.split("│") for line in capture.get().splitlines() if "Q1" in line or "Q2" in line]
    assert [[cell.strip() for cell in row[3:7]] for row in rows] == [
        ["3,000", "1,234", "0.25", "yes"],
        ["0", "-", "0.50", "no"],
    ]


def test_each_query_is_drawn_into_a_png(references, tmp_path):
    paths = save_plots(references, tmp_path / "plots")
    assert [path.name for path in paths] == [f"{name}.png" for name in QUERIES]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_plot_has_title_and_labelled_axes(references):
    """A plot has the sentence as title and labelled axes."""
    figure = draw_query(QUERIES["Q6"], references["Q6"])
    assert figure.get_suptitle().replace("\n", " ") == f"Q6. {QUERIES['Q6'].description}"
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
    assert labels == [
        (r"Trijet $p_\mathrm{T}$ [GeV]", "Events / 3 GeV"),
        ("Largest b-tagging discriminant of the trijet", "Events / 0.01"),
    ]


def test_an_empty_histogram_can_be_drawn(tmp_path):
    assert save_plots({"Q1": empty_histograms(QUERIES["Q1"])}, tmp_path)
