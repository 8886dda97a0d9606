"""The eight queries of the ADL benchmark as histograms on dask: what the demo computes.

    events = open_events(files, steps_per_file=4)
    met = QUERIES["Q1"].function(events)
    met.compute(scheduler=m.get)

A query is a table entry: its sentence, the axes of its histograms, its selection from
`daskvine.demo.kernels`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hist
import hist.dask
import numpy as np
import uproot
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

from daskvine.demo import kernels
from daskvine.demo.nanoaod import TREE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Axis = hist.axis.Regular


@dataclass(frozen=True)
class Query:
    """One query of the benchmark.

    Attributes
    ----------
    name
        ``"Q1"`` to ``"Q8"``.
    description
        The task as a sentence.
    axes
        One axis for each histogram; its label names the quantity and the unit.
    values
        Selection: takes NanoEvents, lazy or in memory, returns one flat array for each histogram.
    counted
        What an entry is: events or jets.
    logarithmic
        Whether the counts are best seen on a logarithmic scale.
    """

    name: str
    description: str
    axes: tuple[Axis, ...]
    values: Callable[[Any], tuple[Any, ...]]
    counted: str = "events"
    logarithmic: bool = False

    def function(self, events: Any) -> Any:
        """Return the lazy histogram of `open_events` events; a tuple if there are several."""
        histograms = self.histograms(events)
        return histograms if len(histograms) > 1 else histograms[0]

    def histograms(self, events: Any) -> tuple[Any, ...]:
        """Return the lazy histograms, always as a tuple."""
        return tuple(
            hist.dask.Hist(axis, storage=hist.storage.Double()).fill(values)
            for axis, values in zip(self.axes, self.values(events), strict=True)
        )


def _axis(bins: int, start: float, stop: float, label: str) -> Axis:
    return Axis(bins, start, stop, name="x", label=label)


_MET = _axis(100, 0, 200, r"$E_\mathrm{T}^\mathrm{miss}$ [GeV]")
_JET_PT = _axis(100, 15, 215, r"Jet $p_\mathrm{T}$ [GeV]")

_ALL = (
    Query("Q1", "Missing transverse energy of all events.", (_MET,), kernels.met, logarithmic=True),
    Query(
        "Q2", "Transverse momentum of all jets.", (_JET_PT,), kernels.jet_pt, counted="jets", logarithmic=True
    ),
    Query(
        "Q3",
        "Transverse momentum of jets with |η| < 1.",
        (_JET_PT,),
        kernels.central_jet_pt,
        counted="jets",
        logarithmic=True,
    ),
    Query(
        "Q4",
        "Missing transverse energy of events with at least two jets above 40 GeV.",
        (_MET,),
        kernels.met_with_two_jets,
    ),
    Query(
        "Q5",
        "Missing transverse energy of events with an opposite-charge muon pair "
        "of invariant mass between 60 and 120 GeV.",
        (_MET,),
        kernels.met_with_dimuon,
    ),
    Query(
        "Q6",
        "Of events with at least three jets: transverse momentum of the trijet with invariant mass closest "
        "to 172.5 GeV, and its largest b-tag.",
        (
            _axis(100, 0, 300, r"Trijet $p_\mathrm{T}$ [GeV]"),
            _axis(100, 0, 1, "Largest b-tagging discriminant of the trijet"),
        ),
        kernels.best_trijet,
    ),
    Query(
        "Q7",
        "Scalar sum of the transverse momenta of jets above 30 GeV that are not within ΔR < 0.4 "
        "of a light lepton above 10 GeV.",
        (_axis(100, 0, 500, r"$\sum p_\mathrm{T}$ of jets away from leptons [GeV]"),),
        kernels.jet_sum_away_from_leptons,
        logarithmic=True,
    ),
    Query(
        "Q8",
        "Of events with at least three light leptons: transverse mass of missing energy and the hardest "
        "lepton outside the same-flavor opposite-charge pair with invariant mass closest to 91.2 GeV.",
        (_axis(50, 0, 200, r"$m_\mathrm{T}$ of $E_\mathrm{T}^\mathrm{miss}$ and third lepton [GeV]"),),
        kernels.transverse_mass_of_third_lepton,
    ),
)

QUERIES: dict[str, Query] = {query.name: query for query in _ALL}
"""The queries by name, in their order."""


def open_events(files: Sequence[str | os.PathLike[str]], steps_per_file: int = 1) -> Any:
    """Open NanoAOD files lazily.

    Parameters
    ----------
    files
        ROOT files with a tree ``Events``: paths on a disk that the workers see too, or addresses (``http://``, ``root://``) that uproot
        reads from.
    steps_per_file
        Each file becomes this many partitions of nearly equal size (fewer if it has fewer events).

    Returns
    -------
    dask_awkward.Array
        NanoEvents in dask mode.
    """
    fileset = {_place(path): {"object_path": TREE, "steps": _steps(path, steps_per_file)} for path in files}
    with quiet_cross_references():
        return NanoEventsFactory.from_root(fileset, schemaclass=NanoAODSchema, mode="dask").events()


def _place(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return text if "://" in text else str(Path(text).resolve())


def _steps(path: str | os.PathLike[str], steps: int) -> list[list[int]]:
    with uproot.open(path) as file:
        entries = int(file[TREE].num_entries)
    edges = np.linspace(0, entries, max(1, min(steps, entries)) + 1).astype(int).tolist()
    return [[start, stop] for start, stop in itertools.pairwise(edges)]


@contextlib.contextmanager
def quiet_cross_references() -> Iterator[None]:
    """Keep coffea from warning of indices between collections (``Muon_jetIdx``) that a small file lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Missing cross-reference", category=RuntimeWarning)
        yield
