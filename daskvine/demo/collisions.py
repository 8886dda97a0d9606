"""What happens in the collisions: four processes, down to leptons, neutrinos and partons.

A caricature of proton collisions at 13 TeV, with proper kinematics where an analysis looks at them:
resonances have line shapes, decay products share the momentum of what decayed, pairs are back to back. No
matrix elements, no spin. The mixture is chosen so that each selection of the demo keeps something, not by
cross sections.

All events of a process are generated together. A particle is a row: the number of its event, a four-momentum,
and a PDG number whose sign carries the charge (13 is a muon, -13 an antimuon, 1 stands for any light parton).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from daskvine.demo.kinematics import (
    Floats,
    breit_wigner,
    four_momenta,
    from_rapidity,
    pt_eta_phi,
    two_body_decay,
)

Integers = npt.NDArray[np.int64]

ELECTRON, MUON, NEUTRINO, LIGHT, BOTTOM = 11, 13, 12, 1, 5
LEPTON_MASS = {ELECTRON: 0.000511, MUON: 0.10566}


class Particles(NamedTuple):
    """Rows of particles: event number, four-momentum (shape ``(n, 4)``, GeV) and PDG number."""

    event: Integers
    momentum: Floats
    pdg_id: Integers

    def where(self, mask: npt.NDArray[np.bool_]) -> Particles:
        """Only the rows where ``mask`` is true."""
        return Particles(self.event[mask], self.momentum[mask], self.pdg_id[mask])

    def kind(self, *kinds: int) -> Particles:
        """Only the particles and antiparticles of these PDG numbers."""
        return self.where(np.isin(np.abs(self.pdg_id), kinds))


Process = Callable[[np.random.Generator, Integers], list[Particles]]


def generate(rng: np.random.Generator, events: int) -> Particles:
    """Particles of ``events`` collisions, numbered from 0, the processes mixed at random."""
    fractions = list(PROCESSES.values())
    process = rng.choice(len(fractions), size=events, p=fractions)
    parts = [_soft_jets(rng, np.arange(events))]
    for number, function in enumerate(PROCESSES):
        parts += function(rng, np.flatnonzero(process == number))
    return concatenate(parts)


def concatenate(parts: Iterable[Particles]) -> Particles:
    """One table of all rows."""
    return Particles(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def drell_yan(rng: np.random.Generator, event: Integers) -> list[Particles]:
    """Generate a Z that decays to two electrons or muons, and a jet against which it recoils."""
    size = len(event)
    phi = _azimuth(rng, size)
    pt = rng.gamma(1.6, 14.0, size)
    bosons = from_rapidity(pt, rng.normal(0.0, 1.5, size), phi, _z_mass(rng, size))
    pt, phi = pt * rng.uniform(0.5, 1.1, size), phi + np.pi + rng.normal(0.0, 0.3, size)
    jets = four_momenta(pt, rng.normal(0.0, 2.0, size), phi, 0.0)
    return [*_z_to_leptons(rng, event, bosons), _same(event, jets, LIGHT)]


def diboson(rng: np.random.Generator, event: Integers) -> list[Particles]:
    """Generate a W and a Z, back to back, both decaying to leptons."""
    w_bosons, z_bosons = _back_to_back(
        rng, rng.gamma(2.0, 25.0, len(event)), _w_mass(rng, len(event)), _z_mass(rng, len(event))
    )
    return [
        *_z_to_leptons(rng, event, z_bosons),
        *_w_to_leptons(rng, event, w_bosons, rng.choice([-1, 1], len(event))),
    ]


def top_pair(rng: np.random.Generator, event: Integers) -> list[Particles]:
    """Generate a top and an antitop.

    Each decays to a b and a W; each W to leptons or, twice as often, to two jets.
    """
    size = len(event)
    masses = [breit_wigner(rng, size, 172.5, 1.4, (160.0, 185.0)) for _ in range(2)]
    particles = []
    for tops, charge in zip(_back_to_back(rng, rng.gamma(2.2, 45.0, size), *masses), (1, -1), strict=True):
        w_bosons, bottoms = two_body_decay(rng, tops, _w_mass(rng, size), 4.7)
        leptonic = rng.random(size) < 1 / 3
        particles += [
            _same(event, bottoms, BOTTOM),
            *_w_to_leptons(
                rng, event[leptonic], w_bosons[leptonic], np.full(np.count_nonzero(leptonic), charge)
            ),
            *_w_to_quarks(rng, event[~leptonic], w_bosons[~leptonic]),
        ]
    return particles


def multijet(rng: np.random.Generator, event: Integers) -> list[Particles]:
    """Two jets with a falling spectrum, back to back but for what a possible third one carries away."""
    size = len(event)
    pt = 18.0 * (1.0 - rng.random(size)) ** (-1 / 3.5)
    first, second = _back_to_back(rng, pt, 0.0, 0.0)
    radiates = rng.random(size) < 0.5
    share = rng.beta(1.0, 3.0, size)[radiates, np.newaxis]
    second, third = _split(rng, second, radiates, share)
    bottom = np.where(rng.random(size) < 0.08, BOTTOM, LIGHT)
    return [
        Particles(event, first, bottom),
        Particles(event, second, bottom),
        _same(event[radiates], third, LIGHT),
    ]


PROCESSES: dict[Process, float] = {drell_yan: 0.42, top_pair: 0.22, diboson: 0.11, multijet: 0.25}
"""The processes and their fractions of the events."""


def _soft_jets(rng: np.random.Generator, event: Integers) -> Particles:
    """Radiation and other collisions of the same bunch crossing: soft jets in any event."""
    owner = np.repeat(event, rng.poisson(1.3, len(event)))
    size = len(owner)
    pt, eta = 12.0 + rng.exponential(11.0, size), rng.uniform(-4.5, 4.5, size)
    jets = four_momenta(pt, eta, _azimuth(rng, size), 0.0)
    return _same(owner, jets, LIGHT)


def _z_to_leptons(rng: np.random.Generator, event: Integers, bosons: Floats) -> list[Particles]:
    flavour = rng.choice([ELECTRON, MUON], len(event))
    mass = np.where(flavour == MUON, LEPTON_MASS[MUON], LEPTON_MASS[ELECTRON])
    negative, positive = two_body_decay(rng, bosons, mass, mass)
    return [Particles(event, negative, flavour), Particles(event, positive, -flavour)]


def _w_to_leptons(
    rng: np.random.Generator, event: Integers, bosons: Floats, charge: Integers
) -> list[Particles]:
    flavour = rng.choice([ELECTRON, MUON], len(event))
    mass = np.where(flavour == MUON, LEPTON_MASS[MUON], LEPTON_MASS[ELECTRON])
    leptons, neutrinos = two_body_decay(rng, bosons, mass, 0.0)
    return [Particles(event, leptons, -charge * flavour), _same(event, neutrinos, NEUTRINO)]


def _w_to_quarks(rng: np.random.Generator, event: Integers, bosons: Floats) -> list[Particles]:
    return [_same(event, quarks, LIGHT) for quarks in two_body_decay(rng, bosons, 0.0, 0.0)]


def _back_to_back(
    rng: np.random.Generator, pt: Floats, mass_a: Floats | float, mass_b: Floats | float
) -> tuple[Floats, Floats]:
    """Two particles of nearly opposite transverse momenta, at rapidities scattered around a common one."""
    size = len(pt)
    phi, center = _azimuth(rng, size), rng.normal(0.0, 0.9, size)
    opposite = phi + np.pi + rng.normal(0.0, 0.25, size)
    first = from_rapidity(pt, center + rng.normal(0.0, 0.6, size), phi, mass_a)
    return first, from_rapidity(pt, center + rng.normal(0.0, 0.6, size), opposite, mass_b)


def _split(
    rng: np.random.Generator, partons: Floats, radiates: npt.NDArray[np.bool_], share: Floats
) -> tuple[Floats, Floats]:
    """Return the rest of radiating partons, and the radiation, up to 1.5 rad away in azimuth."""
    pt, eta, phi = pt_eta_phi(partons[radiates] * share)
    angle, distance = rng.uniform(0.4, 1.5, len(pt)), rng.normal(0.0, 0.6, len(pt))
    rest = partons.copy()
    rest[radiates] *= 1.0 - share
    return rest, four_momenta(pt, eta + distance, phi + angle * rng.choice([-1, 1], len(pt)), 0.0)


def _same(event: Integers, momentum: Floats, pdg_id: int) -> Particles:
    return Particles(event, momentum, np.full(len(event), pdg_id))


def _azimuth(rng: np.random.Generator, size: int) -> Floats:
    return rng.uniform(-np.pi, np.pi, size)


def _z_mass(rng: np.random.Generator, size: int) -> Floats:
    return breit_wigner(rng, size, 91.1876, 2.4952, (50.0, 140.0))


def _w_mass(rng: np.random.Generator, size: int) -> Floats:
    return breit_wigner(rng, size, 80.38, 2.085, (60.0, 100.0))
