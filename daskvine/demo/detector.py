"""What a detector makes of the collisions: acceptance, resolution, and columns with NanoAOD names.

Leptons from the collision are isolated and point to it, leptons inside a b jet do neither. An electron also
leaves a jet where it went, as in real data: an analysis has to remove it. The missing momentum is that of
the neutrinos, plus what the jets were measured wrongly by, plus noise.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from daskvine.demo.collisions import (
    BOTTOM,
    ELECTRON,
    LEPTON_MASS,
    LIGHT,
    MUON,
    NEUTRINO,
    Integers,
    Particles,
    concatenate,
    generate,
)
from daskvine.demo.kinematics import Floats, four_momenta, pt_eta_phi

Flat = dict[str, npt.NDArray[Any]]
"""Columns of one collection, all events in a row; ``event`` says which event a row belongs to."""

LUMINOSITY_BLOCK_EVENTS = 1000


def record(rng: np.random.Generator, events: int, first_event: int = 1) -> dict[str, Any]:
    """Generate collisions and return what is stored of them.

    Parameters
    ----------
    rng
        Source of all randomness: the same state gives the same columns.
    events
        How many.
    first_event
        Number of the first one; it goes into the columns ``event`` and ``luminosityBlock``.

    Returns
    -------
    dict
        Flat columns such as ``MET_pt`` as numpy arrays of length ``events``, and the collections ``Muon``,
        ``Electron`` and ``Jet`` as awkward arrays of records, ordered by falling transverse momentum. Momenta
        are in GeV.
    """
    particles = generate(rng, events)
    secondary = _leptons_in_jets(rng, particles.kind(BOTTOM))
    muons = _muons(rng, particles, secondary)
    electrons = _electrons(rng, particles, secondary)
    jets, lost = _jets(rng, particles)
    return {
        **_identity(events, first_event),
        **_event_columns(rng, events, jets, [muons, electrons]),
        **_missing_momentum(rng, events, particles.kind(NEUTRINO), lost),
        **_triggers(rng, events, muons, electrons),
        "Muon": _jagged(muons, events),
        "Electron": _jagged(electrons, events),
        "Jet": _jagged(jets, events),
    }


def _identity(events: int, first_event: int) -> Flat:
    number = np.arange(first_event, first_event + events, dtype=np.uint64)
    return {
        "run": np.ones(events, np.uint32),
        "luminosityBlock": (number // LUMINOSITY_BLOCK_EVENTS + 1).astype(np.uint32),
        "event": number,
        "genWeight": np.ones(events, np.float32),
    }


def _muons(rng: np.random.Generator, primary: Particles, secondary: Particles) -> Flat:
    columns, prompt = _leptons(rng, primary, secondary, MUON, resolution=0.013, limits=(3.0, 2.4))
    isolation, columns["dxy"] = _isolation_and_dxy(rng, prompt)
    columns["pfRelIso04_all"] = isolation
    columns["tightId"] = rng.random(len(isolation)) < np.where(prompt, 0.96, 0.7)
    return columns


def _electrons(rng: np.random.Generator, primary: Particles, secondary: Particles) -> Flat:
    columns, prompt = _leptons(rng, primary, secondary, ELECTRON, resolution=0.02, limits=(5.0, 2.5))
    isolation, columns["dxy"] = _isolation_and_dxy(rng, prompt)
    columns["pfRelIso03_all"] = isolation
    size = len(isolation)
    columns["cutBased"] = np.where(prompt, rng.integers(2, 5, size), rng.integers(0, 3, size))
    return columns


def _leptons(
    rng: np.random.Generator,
    primary: Particles,
    secondary: Particles,
    flavour: int,
    resolution: float,
    limits: tuple[float, float],
) -> tuple[Flat, npt.NDArray[np.bool_]]:
    """Leptons of one flavour that are measured, and which of them come from the collision itself."""
    sources = [primary.kind(flavour), secondary.kind(flavour)]
    leptons = concatenate(sources)
    prompt = np.repeat([True, False], [len(source.event) for source in sources])
    pt, eta, phi = pt_eta_phi(leptons.momentum)
    pt = pt * rng.normal(1.0, resolution, len(pt))
    seen = (pt > limits[0]) & (np.abs(eta) < limits[1]) & (rng.random(len(pt)) < 0.93)
    columns: Flat = {
        "event": leptons.event,
        "pt": pt,
        "eta": eta,
        "phi": phi,
        "mass": np.full(len(pt), LEPTON_MASS[flavour]),
        "charge": -np.sign(leptons.pdg_id),
    }
    return {name: column[seen] for name, column in columns.items()}, prompt[seen]


def _leptons_in_jets(rng: np.random.Generator, bottoms: Particles) -> Particles:
    """Leptons from decays of b hadrons: a part of the jet's momentum, close to its axis."""
    parents = bottoms.where(rng.random(len(bottoms.event)) < 0.1)
    size = len(parents.event)
    pt, eta, phi = pt_eta_phi(parents.momentum)
    pt = pt * rng.beta(2.0, 5.0, size)
    momentum = four_momenta(pt, eta + rng.normal(0.0, 0.08, size), phi + rng.normal(0.0, 0.08, size), 0.0)
    return Particles(parents.event, momentum, rng.choice([-MUON, -ELECTRON, ELECTRON, MUON], size))


def _isolation_and_dxy(rng: np.random.Generator, prompt: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Relative isolation (no unit) and transverse impact parameter in cm."""
    size = len(prompt)
    isolation = np.where(prompt, rng.exponential(0.04, size), 0.1 + rng.exponential(0.8, size))
    return isolation, rng.normal(0.0, 1.0, size) * np.where(prompt, 0.0025, 0.02)


def _jets(rng: np.random.Generator, particles: Particles) -> tuple[Flat, tuple[Integers, Floats]]:
    """Measured jets, and per parton its event and the momentum (px, py) by which it was measured too low."""
    sources = particles.kind(LIGHT, BOTTOM, ELECTRON)
    size = len(sources.event)
    pt, eta, phi = pt_eta_phi(sources.momentum)
    electron, bottom = (np.abs(sources.pdg_id) == kind for kind in (ELECTRON, BOTTOM))
    resolution = np.where(electron, 0.03, np.minimum(0.06 + 0.9 / np.sqrt(np.maximum(pt, 1.0)), 0.3))
    measured = np.maximum(pt * rng.normal(1.0, resolution), 0.0)
    columns: Flat = {
        "event": sources.event,
        "pt": measured,
        "eta": eta + rng.normal(0.0, 0.02, size),
        "phi": _wrapped(phi + rng.normal(0.0, 0.02, size)),
        "mass": measured * rng.uniform(0.08, 0.2, size),
        "btag": np.where(bottom, rng.beta(5.0, 1.3, size), rng.beta(0.8, 7.0, size)),
        "jetId": np.where(electron, 2, 6),
        "nConstituents": 1 + rng.poisson(np.where(electron, 1.0, 4.0 * np.sqrt(measured + 1.0))),
    }
    seen = (measured > 15.0) & (np.abs(columns["eta"]) < 4.7)
    lost = sources.momentum[:, :2] * (1.0 - measured / np.maximum(pt, 1e-9))[:, np.newaxis]
    return {name: column[seen] for name, column in columns.items()}, (sources.event, lost)


def _missing_momentum(
    rng: np.random.Generator, events: int, neutrinos: Particles, lost: tuple[Integers, Floats]
) -> Flat:
    px, py = (
        np.bincount(neutrinos.event, neutrinos.momentum[:, axis], events)
        + np.bincount(lost[0], lost[1][:, axis], events)
        + rng.normal(0.0, 11.0, events)
        for axis in (0, 1)
    )
    return {"MET_pt": _single(np.hypot(px, py)), "MET_phi": _single(np.arctan2(py, px))}


def _event_columns(rng: np.random.Generator, events: int, jets: Flat, leptons: list[Flat]) -> Flat:
    visible = sum(np.bincount(objects["event"], objects["pt"], events) for objects in [jets, *leptons])
    return {
        "PV_npvs": (1 + rng.poisson(24.0, events)).astype(np.int32),
        "MET_sumet": _single(visible + rng.gamma(12.0, 35.0, events)),
    }


def _triggers(rng: np.random.Generator, events: int, muons: Flat, electrons: Flat) -> Flat:
    muon = (muons["pt"] > 24.0) & (muons["pfRelIso04_all"] < 0.15)
    electron = (electrons["pt"] > 32.0) & (electrons["cutBased"] > 2)
    return {
        "HLT_IsoMu24": _fires(rng, events, muons["event"][muon]),
        "HLT_Ele32_WPTight_Gsf": _fires(rng, events, electrons["event"][electron]),
    }


def _fires(rng: np.random.Generator, events: int, candidates: Integers) -> npt.NDArray[np.bool_]:
    return (np.bincount(candidates, minlength=events) > 0) & (rng.random(events) < 0.92)


def _jagged(columns: Flat, events: int) -> ak.Array:
    """Build lists of records, one per event, hardest object first, with NanoAOD's types."""
    order = np.lexsort((-columns["pt"], columns["event"]))
    stored = {name: _stored(column[order]) for name, column in columns.items() if name != "event"}
    return ak.unflatten(ak.zip(stored), np.bincount(columns["event"], minlength=events))


def _stored(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    narrow = {"f": np.float32, "i": np.int32}.get(column.dtype.kind)
    return column if narrow is None else column.astype(narrow)


def _single(column: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return column.astype(np.float32)


def _wrapped(phi: Floats) -> Floats:
    return np.arctan2(np.sin(phi), np.cos(phi))
