"""The same queries without dask: file by file, read into memory and filled into plain histograms.

Slow and simple on purpose. It is what the distributed results are compared with, bin for bin.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import hist
import numpy as np
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

from daskvine.demo.nanoaod import TREE
from daskvine.demo.queries import QUERIES, Query, quiet_cross_references

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

Histograms = tuple[hist.Hist[Any], ...]


def compute_reference(
    files: Iterable[str | os.PathLike[str]], names: Sequence[str] = tuple(QUERIES)
) -> dict[str, Histograms]:
    """Histograms of the named queries over all files, computed in this process.

    Parameters
    ----------
    files
        Paths of ROOT files with a tree ``Events``. One of them is in memory at a time.
    names
        Names of queries, all by default.

    Returns
    -------
    dict
        For each name the histograms of that query, a tuple.
    """
    queries = [QUERIES[name] for name in names]
    results = {query.name: empty_histograms(query) for query in queries}
    for path in files:
        events = read_events(path)
        for query in queries:
            _fill(results[query.name], query.values(events))
    return results


def read_events(path: str | os.PathLike[str]) -> Any:
    """NanoEvents of one file, all in memory."""
    with quiet_cross_references():
        fileset = {str(Path(path).resolve()): TREE}
        return NanoEventsFactory.from_root(fileset, schemaclass=NanoAODSchema, mode="eager").events()


def empty_histograms(query: Query) -> Histograms:
    """Return the histograms of a query before anything is filled."""
    return tuple(hist.Hist(axis, storage=hist.storage.Double()) for axis in query.axes)


def same(results: Sequence[Any], references: Sequence[Any]) -> bool:
    """Whether two sequences of histograms agree exactly: axes, and every bin, underflow and overflow too."""
    return len(results) == len(references) and all(
        result.axes == reference.axes and np.array_equal(result.view(flow=True), reference.view(flow=True))
        for result, reference in zip(results, references, strict=True)
    )


def _fill(histograms: Histograms, arrays: tuple[Any, ...]) -> None:
    for histogram, values in zip(histograms, arrays, strict=True):
        histogram.fill(ak.to_numpy(values, allow_missing=False))
