"""Shuffles that dask does through a folder, asked for by name: the same comes out, whether workers share a folder or not."""

from __future__ import annotations

import os

import dask
import dask.bag as db
import pytest

from daskvine.graph import to_task_spec_graph
from daskvine.shuffle import replace_disk_shuffles

HERE = {"scheduler": "synchronous"}


@pytest.fixture
def options(two_workers, task_mode):
    return {"scheduler": two_workers.get, "task_mode": task_mode}


def in_order(groups):
    return sorted((key, sorted(group)) for key, group in groups)


@pytest.fixture
def frame():
    pandas, frames = pytest.importorskip("pandas"), pytest.importorskip("dask.dataframe")
    n = 60
    whole = pandas.DataFrame(
        {"x": [i % 7 for i in range(n)], "y": range(n), "s": pandas.Categorical(list("abcde") * 12)}
    )
    return frames.from_pandas(whole, npartitions=5)


def test_bags_are_grouped(options):
    bag = db.from_sequence(range(100), npartitions=5)
    grouped = bag.groupby(lambda x: x % 7, shuffle="disk", npartitions=3, blocksize=4)
    found = grouped.compute(**options)
    assert in_order(found) == in_order(grouped.compute(**HERE))
    assert dict(found)[3] == list(range(3, 100, 7))  # in the order in which they were
    assert bag.filter(lambda _x: False).groupby(abs, shuffle="disk").compute(**options) == []


def test_dataframes_are_shuffled(options, frame):
    shuffled = frame.shuffle("x", shuffle_method="disk")
    parts, expected = (
        dask.compute(shuffled.to_delayed(), **options)[0],
        dask.compute(shuffled.to_delayed(), **HERE)[0],
    )
    assert len(parts) == len(expected)
    for part, other in zip(parts, expected, strict=True):
        assert part.sort_index().equals(other.sort_index())
        assert list(part.dtypes) == list(other.dtypes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # dask's own, of NumPy's
def test_what_is_built_upon_shuffles_is_right(options, frame):
    with dask.config.set({"dataframe.shuffle.method": "disk"}):
        for made in (
            frame.merge(frame, on="x").y_x.sum(),
            frame.set_index("y"),
            frame.groupby("x").y.apply(lambda s: s.max(), meta=("y", "i8")),
        ):
            found, expected = made.compute(**options), made.compute(**HERE)
            assert (
                found == expected
                if not hasattr(found, "sort_index")
                else found.sort_index().equals(expected.sort_index())
            )


def test_part_written_twice_counts_once(options, tmp_path):
    """A part that is written twice counts once."""

    def group(x, flag=str(tmp_path / "flag")):
        if x == 17 and not os.path.exists(flag):
            with open(flag, "w"):
                os._exit(1)
        return x % 3

    bag = db.from_sequence(range(20), npartitions=2)
    grouped = bag.groupby(group, shuffle="disk", blocksize=2)
    found = grouped.compute(**options)
    assert (tmp_path / "flag").exists()
    assert in_order(found) == in_order(grouped.compute(**HERE))


def test_exception_in_shuffle_is_raised(options):
    """What a vertex raises while it writes or reads is raised."""
    grouped = db.from_sequence([1, 0], npartitions=2).groupby(lambda x: 1 / x, shuffle="disk")
    with pytest.raises(ZeroDivisionError):
        grouped.compute(**options)


def test_graph_without_shuffle_is_unchanged():
    """A graph without such shuffles stays what it is."""
    nodes = to_task_spec_graph({"a": (abs, 1), "b": (abs, "a")})
    assert replace_disk_shuffles(nodes) is nodes


def test_other_use_of_folder_is_refused(options):
    """A folder that is used in another way is refused."""
    partd = pytest.importorskip("partd")
    graph = {"p": (partd.Python, (partd.File,)), "x": (len, ["p"])}
    with pytest.raises(ValueError, match=r"'p' shuffles through a folder.*shuffle='tasks'"):
        options["scheduler"](graph, "x", task_mode=options["task_mode"])
