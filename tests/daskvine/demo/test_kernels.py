"""The selections against the same physics written as loops over events, with none of the array code."""

from __future__ import annotations

import itertools
import math

import pytest

pytest.importorskip("coffea", reason="the demo needs the HEP stack (coffea, awkward)")

import awkward as ak
import numpy as np

from daskvine.demo import kernels
from daskvine.demo.reference import read_events

EVENTS = 400


@pytest.fixture(scope="module")
def events(dataset):
    return read_events(dataset[0])[:EVENTS]


@pytest.fixture(scope="module")
def records(events):
    """The events as dictionaries of plain numbers."""
    names = {
        "Muon": ["pt", "eta", "phi", "mass", "charge"],
        "Electron": ["pt", "eta", "phi", "mass", "charge"],
        "Jet": ["pt", "eta", "phi", "mass", "btag"],
        "MET": ["pt", "phi"],
    }
    plain = {
        collection: ak.to_list(ak.zip({name: events[collection][name] for name in fields}))
        for collection, fields in names.items()
    }
    return [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]


def total(objects):
    px = sum(one["pt"] * math.cos(one["phi"]) for one in objects)
    py = sum(one["pt"] * math.sin(one["phi"]) for one in objects)
    pz = sum(one["pt"] * math.sinh(one["eta"]) for one in objects)
    energy = sum(math.hypot(one["pt"] * math.cosh(one["eta"]), one["mass"]) for one in objects)
    return math.hypot(px, py), math.sqrt(max(energy**2 - px**2 - py**2 - pz**2, 0.0))


def distance(one, other):
    turn = (one["phi"] - other["phi"] + math.pi) % (2.0 * math.pi) - math.pi
    return math.hypot(one["eta"] - other["eta"], turn)


def leptons(event):
    muons = [{**one, "flavor": "muon"} for one in event["Muon"]]
    return muons + [{**one, "flavor": "electron"} for one in event["Electron"]]


def assert_close(arrays, *expected):
    for array, values in zip(arrays, expected, strict=True):
        assert len(values) > 0
        np.testing.assert_allclose(ak.to_numpy(array), values, rtol=2e-3, atol=2e-2)


def test_simple_selections(events, records):
    jets = [jet for event in records for jet in event["Jet"]]
    assert_close(kernels.met(events), [event["MET"]["pt"] for event in records])
    assert_close(kernels.jet_pt(events), [jet["pt"] for jet in jets])
    assert_close(kernels.central_jet_pt(events), [jet["pt"] for jet in jets if abs(jet["eta"]) < 1.0])


def test_events_with_two_jets(events, records):
    expected = [
        event["MET"]["pt"] for event in records if len([jet for jet in event["Jet"] if jet["pt"] > 40.0]) >= 2
    ]
    assert_close(kernels.met_with_two_jets(events), expected)


def test_events_with_muon_pair_near_z(events, records):
    """Events with a muon pair near the z."""
    expected = [
        event["MET"]["pt"]
        for event in records
        if any(
            one["charge"] != other["charge"] and 60.0 < total([one, other])[1] < 120.0
            for one, other in itertools.combinations(event["Muon"], 2)
        )
    ]
    assert_close(kernels.met_with_dimuon(events), expected)


def test_trijet_closest_to_the_top(events, records):
    best = [
        min(itertools.combinations(event["Jet"], 3), key=lambda jets: abs(total(jets)[1] - 172.5))
        for event in records
        if len(event["Jet"]) >= 3
    ]
    expected = [total(jets)[0] for jets in best], [max(jet["btag"] for jet in jets) for jets in best]
    assert_close(kernels.best_trijet(events), *expected)


def test_sum_of_jets_away_from_leptons(events, records):
    expected = [
        sum(
            jet["pt"]
            for jet in event["Jet"]
            if jet["pt"] > 30.0
            and all(distance(jet, one) >= 0.4 for one in leptons(event) if one["pt"] > 10.0)
        )
        for event in records
    ]
    assert_close(kernels.jet_sum_away_from_leptons(events), expected)


def test_transverse_mass_with_the_third_lepton(events, records):
    expected = []
    for event in records:
        found = leptons(event)
        pairs = [
            pair
            for pair in itertools.combinations(found, 2)
            if pair[0]["flavor"] == pair[1]["flavor"] and pair[0]["charge"] != pair[1]["charge"]
        ]
        if len(found) < 3 or not pairs:
            continue
        best = min(pairs, key=lambda pair: abs(total(pair)[1] - 91.2))
        third = max(
            (one for one in found if not any(one is used for used in best)), key=lambda one: one["pt"]
        )
        cosine = math.cos(event["MET"]["phi"] - third["phi"])
        expected.append(math.sqrt(2.0 * third["pt"] * event["MET"]["pt"] * (1.0 - cosine)))
    assert_close(kernels.transverse_mass_of_third_lepton(events), expected)


@pytest.mark.parametrize("name", ["btagDeepFlavB", "btagDeepB"])
def test_b_tag_of_real_nanoaod_is_found(events, name):
    """The b tag of real nanoaod is found."""
    renamed = ak.zip(
        {**{field: events.Jet[field] for field in ("pt", "eta", "phi", "mass")}, name: events.Jet.btag},
        with_name="PtEtaPhiMLorentzVector",
        behavior=events.Jet.behavior,
    )
    expected, found = (
        kernels.best_trijet(events)[1],
        kernels.best_trijet(ak.with_field(events, renamed, "Jet"))[1],
    )
    assert ak.array_equal(expected, found)


def test_missing_b_tag_is_named(events):
    """Jets without a b tag are an error that names what was looked for."""
    bare = ak.zip({field: events.Jet[field] for field in ("pt", "eta", "phi", "mass")})
    with pytest.raises(ValueError, match=r"no b-tag: looked for btag, .* found pt, eta, phi, mass"):
        kernels.best_trijet(ak.with_field(events, bare, "Jet"))
