"""The synthetic files: what is in them, that they are reproducible, and that they are not written twice."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("coffea", reason="the demo needs the HEP stack (coffea, uproot, awkward)")

import awkward as ak
import numpy as np
import uproot

from daskvine.demo import kernels
from daskvine.demo.collisions import PROCESSES
from daskvine.demo.kinematics import breit_wigner, from_rapidity, invariant_mass, two_body_decay
from daskvine.demo.nanoaod import BASKETS, MARKER, TREE, make_columns, write_dataset
from daskvine.demo.reference import read_events


def timestamps(paths):
    return [path.stat().st_mtime_ns for path in paths]


def same_columns(one, other):
    return all(ak.array_equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


def test_branches_match_nanoaod(dataset):
    """Branches have the names and types of nanoaod."""
    with uproot.open(dataset[0]) as file:
        branches = {branch.name: branch.typename for branch in file[TREE].branches}
    assert len(branches) == 36
    expected = {
        "run": "uint32_t",
        "event": "uint64_t",
        "HLT_IsoMu24": "bool",
        "MET_pt": "float",
        "nMuon": "int32_t",
        "Muon_pt": "float[]",
        "Muon_charge": "int32_t[]",
        "Muon_pfRelIso04_all": "float[]",
        "Electron_cutBased": "int32_t[]",
        "Jet_btag": "float[]",
    }
    assert {name: branches[name] for name in expected} == expected


def test_branches_have_several_baskets(dataset):
    with uproot.open(dataset[0]) as file:
        assert {branch.num_baskets for branch in file[TREE].branches} == {BASKETS}


def test_file_may_have_fewer_events_than_baskets(tmp_path):
    """A file may have fewer events than baskets."""
    paths = write_dataset(tmp_path, files=1, events=2)
    assert len(read_events(paths[0])) == 2


def test_events_are_numbered_through_the_data_set(dataset):
    numbers = np.concatenate([ak.to_numpy(read_events(path).event) for path in dataset])
    assert numbers.tolist() == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("collection", ["Muon", "Electron", "Jet"])
def test_objects_are_ordered_and_finite(dataset, collection):
    """Objects are ordered by falling momentum and finite."""
    objects = read_events(dataset[0])[collection]
    assert ak.all(objects.pt[:, :-1] >= objects.pt[:, 1:])
    assert all(np.all(np.isfinite(ak.to_numpy(ak.flatten(objects[name])))) for name in objects.fields)
    assert ak.all(abs(objects.phi) < 3.15)


def test_the_same_arguments_give_the_same_columns():
    assert same_columns(make_columns(0, 300, seed=1), make_columns(0, 300, seed=1))


@pytest.mark.parametrize(("number", "seed"), [(1, 1), (0, 2)])
def test_other_files_and_seeds_differ(number, seed):
    """Other files and other seeds give other columns."""
    one, other = make_columns(0, 300, seed=1), make_columns(number, 300, seed=seed)
    assert not ak.array_equal(one["MET_pt"], other["MET_pt"])


def test_larger_data_set_extends_smaller_one(dataset, tmp_path):
    """A larger data set begins with the smaller one."""
    first = write_dataset(tmp_path, files=1, events=1500, seed=7)[0]
    assert ak.array_equal(read_events(first).Jet.pt, read_events(dataset[0]).Jet.pt)


def test_muon_pairs_peak_at_z(dataset):
    """Opposite charge muon pairs peak at the z."""
    masses = np.concatenate(
        [ak.to_numpy(ak.flatten(kernels.dimuon_mass(read_events(path)))) for path in dataset]
    )
    counts, edges = np.histogram(masses, np.arange(51.0, 132.0, 4.0))
    peak = int(np.argmax(counts))
    assert edges[peak] < 91.2 < edges[peak + 1]
    sidebands = (masses > 70.0) & (masses < 80.0) | (masses > 102.0) & (masses < 112.0)
    assert np.count_nonzero(abs(masses - 91.2) < 5.0) > 10 * np.count_nonzero(sidebands)


def test_electrons_leave_jets_that_overlap_with_them(dataset):
    events = read_events(dataset[0])
    electrons = events.Electron[events.Electron.pt > 25.0]
    assert ak.mean(ak.any(electrons.metric_table(events.Jet) < 0.2, axis=2)) > 0.9


def test_fractions_of_processes_add_up():
    assert sum(PROCESSES.values()) == pytest.approx(1.0)


def test_decay_products_add_up_to_parent():
    """Decay products add up to the parent and have their masses."""
    rng = np.random.default_rng(3)
    masses = breit_wigner(rng, 100, 91.2, 2.5, (60.0, 120.0))
    parents = from_rapidity(
        rng.gamma(2.0, 20.0, 100), rng.normal(0.0, 1.0, 100), rng.uniform(-3, 3, 100), masses
    )
    first, second = two_body_decay(rng, parents, 4.7, 1.8)
    assert np.all((masses > 60.0) & (masses < 120.0))
    np.testing.assert_allclose(first + second, parents)
    np.testing.assert_allclose(invariant_mass(parents), masses)
    np.testing.assert_allclose(invariant_mass(first), 4.7, atol=1e-3)
    np.testing.assert_allclose(invariant_mass(second), 1.8, atol=1e-3)


def test_a_complete_data_set_is_reused(tmp_path):
    paths = write_dataset(tmp_path, files=2, events=50)
    before = timestamps(paths)
    assert write_dataset(tmp_path, files=2, events=50) == paths
    assert timestamps(paths) == before


def test_other_parameters_replace_data_set(tmp_path):
    """Other parameters replace the data set and its files."""
    write_dataset(tmp_path, files=3, events=50)
    paths = write_dataset(tmp_path, files=1, events=60)
    assert sorted(tmp_path.glob("*.root")) == paths
    assert len(read_events(paths[0])) == 60


@pytest.mark.parametrize("damage", ["missing", "truncated", "interrupted", "unreadable"])
def test_a_damaged_data_set_is_written_again(tmp_path, damage):
    paths = write_dataset(tmp_path, files=2, events=50)
    if damage == "missing":
        paths[1].unlink()
    elif damage == "truncated":
        paths[1].write_bytes(paths[1].read_bytes()[:100])
    elif damage == "interrupted":
        (tmp_path / MARKER).unlink()
    else:
        (tmp_path / MARKER).write_text("{")
    write_dataset(tmp_path, files=2, events=50)
    assert [len(read_events(path)) for path in paths] == [50, 50]
    assert json.loads((tmp_path / MARKER).read_text())["parameters"]["files"] == 2


def test_files_outside_folder_are_untouched(tmp_path):
    """Files outside of the folder are not touched."""
    other = tmp_path / "other.root"
    other.write_text("mine")
    folder = tmp_path / "data"
    write_dataset(folder, files=1, events=10)
    marker = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps({**marker, "sizes": {"../other.root": 4}}))
    write_dataset(folder, files=1, events=11)
    assert other.read_text() == "mine"


@pytest.mark.parametrize("arguments", [{"files": 0}, {"events": 0}])
def test_an_empty_data_set_is_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match="at least one file and one event"):
        write_dataset(tmp_path, **arguments)
