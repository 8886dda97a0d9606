"""Buffers that are mostly zeros: smaller where they are kept and sent, and the same to the last bit when they come back."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vinecore.protocol.serialization import values, zero_suppression

DTYPES = ("f8", "f4", "i8", "i4", "u1", "?", "c16", "S5", [("value", "f8"), ("variance", "f8")], ">f8")
NAN = np.array([0x7FF8DEADBEEF0001], np.uint64).view(np.float64)[0]  # one that carries something


def filled(size, share, *, clusters=False, seed=0):
    """Numbers of which about a share is not zero: in blocks of a thousand, or anywhere."""
    rng = np.random.default_rng(seed)
    there = (
        np.repeat(rng.random(-(-size // 1000)) < share, 1000)[:size] if clusters else rng.random(size) < share
    )
    return np.where(there, rng.random(size) + 1, 0.0)


def same(one, other):
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.flags.f_contiguous == other.flags.f_contiguous
        and (one.flags.writeable == other.flags.writeable or one.nbytes < values.MIN_OUT_OF_BAND_BYTES)
        and (one.flags.c_contiguous == other.flags.c_contiguous or not one.size)
        and one.tobytes("A") == other.tobytes("A")
    )


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.one_of(st.tuples(st.integers(0, 40_000)), st.tuples(st.integers(1, 300), st.integers(1, 300))),
    order=st.sampled_from("CF"),
    share=st.sampled_from([0.0, 0.001, 0.15, 0.3, 0.6, 1.0]),
    clusters=st.booleans(),
    writeable=st.booleans(),
    seed=st.integers(0, 9),
)
def test_arrays_are_bitwise_equal(dtype, shape, order, share, clusters, writeable, seed):
    """Arrays come back the same bit for bit."""
    array = np.zeros(shape, dtype, order=order)
    raw = array.reshape(-1, order="A").view("u1")
    raw[:] = np.resize(filled(len(raw) // 8 + 1, share, clusters=clusters, seed=seed).view("u1"), len(raw))
    array.flags.writeable = writeable
    data = values.dumps({"a": array})
    assert same(values.loads(data)["a"], array)
    assert len(data) <= array.nbytes + 1000


def test_minus_zero_and_nan_payload_survive():
    """Minus zero and what a nan carries survive."""
    array = np.zeros(100_000)
    array[[5, 70_000, 99_999]] = -0.0, NAN, np.inf
    data = values.dumps(array)
    assert len(data) < 20_000
    assert values.loads(data).tobytes() == array.tobytes()


@pytest.mark.parametrize("clusters", [False, True], ids=["scattered", "clusters"])
def test_sparse_array_takes_a_sixth(clusters):
    """An array filled to 15 percent takes a sixth."""
    array = filled(1_000_000, 0.15, clusters=clusters)
    assert values.size_of(values.dump(array)) < 0.18 * array.nbytes


@pytest.mark.parametrize("array", [filled(100_000, 0.5), filled(8000, 0.0), np.arange(100_000)])
def test_small_or_dense_array_is_uncopied(array):
    """What is small or well filled stays as it is and is not copied."""
    head, _padding, buffer = values.dump(array)
    assert head.startswith(values.MAGIC)
    assert np.shares_memory(np.frombuffer(buffer, "u1"), array)


def test_odd_end_of_buffer_survives():
    """The end of a buffer that is no whole word survives."""
    for length in range(100_000, 100_009):
        array = np.zeros(length, "u1")
        array[-9:] = range(1, 10)
        back = values.loads(values.dumps(array))
        assert np.array_equal(back, array)


def test_dense_and_packed_arrays_travel_together(tmp_path):
    value = [np.arange(20_000.0), filled(50_000, 0.1), np.arange(3), filled(50_000, 0.1).astype("f4")]
    path = tmp_path / "value"
    path.write_bytes(values.dumps(value))
    for back, array in zip(values.load_file(str(path)), value, strict=True):
        assert same(back, array)
        back[:] = 1  # it is the reader's own
    assert np.array_equal(values.load_file(str(path))[1], value[1])


def test_zeros_that_are_loaded_take_no_memory():
    script = """
        import sys
        import numpy as np
        from vinecore.protocol.serialization import values

        def anonymous():
            with open("/proc/self/smaps_rollup") as lines:
                return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous"))

        array = np.zeros(25_000_000)
        array[:1_000_000] = 1
        data = values.dumps(array)
        del array
        before = anonymous()
        loaded = values.loads(data)
        print(anonymous() - before)
        assert loaded.sum() == 1_000_000
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert int(done.stdout) < 40_000, "8 MB of 200 are not zero, and so much is the pickle itself"


def test_packed_value_knows_its_memory():
    """What was packed tells how much memory it takes."""
    array = filled(100_000, 0.1)
    data = values.dumps({"a": array, "b": 1})
    assert len(data) < 200_000
    assert array.nbytes < values.loaded_size(data) < array.nbytes + 1000
    assert values.loaded_size(values.dumps(1)) < 100


def test_truncated_packed_value_is_refused():
    """A packed value that was cut short is not loaded."""
    data = values.dumps(filled(100_000, 0.1))
    for length in (len(data) - 1, len(data) - 8, len(data) // 2, 200):
        with pytest.raises((ValueError, EOFError)):
            values.loads(data[:length])


def test_without_numpy_nothing_is_packed(monkeypatch):
    """Nothing is packed where there is no numpy."""
    raw = memoryview(filled(100_000, 0.0)).cast("B")
    assert zero_suppression.pack(raw)
    monkeypatch.delitem(sys.modules, "numpy")
    assert zero_suppression.pack(raw) is None


class TestHistograms:
    """Those of boost-histogram, and of hist."""

    @staticmethod
    def axes(hist):
        return (
            hist.axis.Regular(400, 0, 1, name="x", label="$x$"),
            hist.axis.StrCategory(["a"], growth=True, name="c"),
            hist.axis.Variable(np.linspace(0, 1, 40), name="v", flow=False),
        )

    @pytest.mark.parametrize(
        "storage", ["Double", "Int64", "AtomicInt64", "Weight", "Mean", "WeightedMean", "Unlimited"]
    )
    @pytest.mark.parametrize("share", [0.15, 0.9])
    @pytest.mark.parametrize("by_value", [False, True])
    def test_they_come_back_as_they_were(self, storage, share, by_value):
        hist = pytest.importorskip("hist")
        made = hist.Hist(*self.axes(hist), storage=getattr(hist.storage, storage)(), name="h", label="events")
        rng = np.random.default_rng(1)
        sample = {"sample": rng.random(20_000)} if "Mean" in storage else {}
        made.fill(
            rng.random(20_000) * share, rng.choice(["a", "b"], 20_000), rng.random(20_000) * share, **sample
        )
        made.metadata = {"year": 2026}
        back = values.loads(values.dumps(made, by_value=by_value))
        assert type(back) is type(made)
        assert back == made
        assert back.view(flow=True).tobytes() == made.view(flow=True).tobytes()
        assert (back.name, back.label, back.metadata) == ("h", "events", {"year": 2026})
        assert [dict(axis.__dict__) for axis in back.axes] == [dict(axis.__dict__) for axis in made.axes]
        back.fill(0.5, "new", 0.5, **({"sample": 1.0} if sample else {}))
        assert "new" in back.axes["c"]
        assert "new" not in made.axes["c"]

    def test_large_histogram_bins_are_not_copied(self):
        """The bins of a large one are not copied to be written."""
        hist = pytest.importorskip("hist")
        made = hist.Hist.new.Reg(300, 0, 1).Reg(300, 0, 1).Double()
        made.view()[:] = 1
        _head, _padding, buffer = values.dump(made)
        assert np.shares_memory(np.frombuffer(buffer, "u1"), made.view(flow=True))

    def test_what_others_pickle_is_as_it_was(self):
        hist = pytest.importorskip("hist")
        import pickle

        made = hist.Hist.new.Reg(100_000, 0, 1).Double()
        values.dumps(made)
        assert b"vinecore" not in pickle.dumps(made)
