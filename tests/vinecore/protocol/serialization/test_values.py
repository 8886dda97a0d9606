"""Values: there and back, without copying where that can be, and without failing where it cannot."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest

from vinecore.protocol.serialization import pickling, values
from vinecore.protocol.serialization.pickling import MIN_SHARED_BEHAVIOR, cloudpickle_dumps
from vinecore.protocol.serialization.placeholders import (
    InputPlaceholder,
    SharedPlaceholder,
    substitute_placeholders,
)

BIG = 100_000


class OnlyOldPickle:
    """As arrays of dates in some libraries: protocol 5 fails for it, and protocol 4 does not."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        if protocol >= 5:
            msg = "cannot include dtype 'M' in a buffer"
            raise ValueError(msg)
        return (type(self), (self.data,))


class NeverPickled:
    def __reduce_ex__(self, protocol):
        msg = "this holds a socket"
        raise TypeError(msg)


def there_and_back(value, **how):
    return values.loads(values.dumps(value, **how))


@pytest.mark.parametrize(
    "value",
    [None, 0, "text", b"", b"x" * BIG, [1, (2, {3: {4}})], {"a": [1.5, float("inf")]}, range(10), np.float32(3), Exception("no")],
    ids=repr,
)  # fmt: skip
def test_plain_values_come_back_equal(value):
    back = there_and_back(value)
    assert repr(back) == repr(value)
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "dtype", ["f8", "i1", "c16", "?", "S7", "U3", "O", [("a", "i4"), ("b", "f8")], "M8[s]", "m8[ns]"]
)
@pytest.mark.parametrize("shape", [(0,), (7,), (BIG,), (300, 400)])
def test_arrays_come_back_equal(dtype, shape):
    array = np.zeros(shape, dtype)
    back = there_and_back(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(BIG)[::3],
        np.asfortranarray(np.arange(BIG).reshape(100, 1000)),
        np.arange(BIG).reshape(1000, 100).T,
    ],
)
def test_non_contiguous_arrays_are_equal(array):
    """Arrays that are not in one piece come back equal."""
    assert np.array_equal(there_and_back(array), array)


def test_large_buffers_are_aligned_outside_pickle():
    """Large buffers stay out of the pickle and begin at aligned places."""
    array = np.arange(BIG)
    parts = values.dump([array, array[:1000].copy(), np.arange(10)])
    assert len(parts) == 5, (
        "the head, and two buffers with what comes before each; the small one is in the pickle"
    )
    assert len(parts[0]) < 2000
    position = 0
    for part in parts:
        if len(part) >= 8000:
            assert position % values.ALIGNMENT == 0
        position += len(part)
    assert values.size_of(parts) == position == len(values.dumps([array, array[:1000].copy(), np.arange(10)]))


def test_repeated_array_stays_one():
    """The same array twice is one array afterwards."""
    array = np.arange(BIG)
    first, second = there_and_back([array, array])
    assert first is second


def test_loaded_arrays_are_writable_copies(tmp_path):
    """The arrays of a loaded file can be written to and the file stays as it is."""
    path = tmp_path / "value"
    original = values.dumps({"a": np.arange(BIG), "b": np.ones(BIG)})
    path.write_bytes(original)
    value = values.load_file(str(path))
    value["a"][0] = 77
    value["b"] += 1
    assert value["a"][0] == 77
    assert path.read_bytes() == original, "what one reader writes is its own"
    again = values.load_file(str(path))
    assert again["a"][0] == 0
    assert again["b"][0] == 1


def test_loaded_arrays_are_mapped(tmp_path):
    """Arrays of a loaded file lie in the mapped file."""
    path = tmp_path / "value"
    path.write_bytes(values.dumps(np.arange(BIG)))
    array = values.load_file(str(path))
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            low, high = (int(x, 16) for x in line.split()[0].split("-"))
            if low <= address < high:
                assert line.rstrip().endswith(str(path))
                return
    pytest.fail("the array is nowhere")


def test_a_loaded_file_survives_its_deletion(tmp_path):
    path = tmp_path / "value"
    path.write_bytes(values.dumps(np.arange(BIG)))
    array = values.load_file(str(path))
    path.unlink()
    assert array.sum() == sum(range(BIG))


def test_value_without_buffers_loads_from_file(tmp_path):
    """A value without buffers is loaded from a file as well."""
    path = tmp_path / "value"
    path.write_bytes(values.dumps({"a": 1}))
    assert values.load_file(str(path)) == {"a": 1}


def test_arrays_from_bytes_are_writable_copies():
    """Arrays loaded from bytes can be written to and leave the bytes alone."""
    data = values.dumps(np.arange(BIG))
    array = values.loads(data)
    array[:] = 0
    assert values.loads(data)[5] == 5


def test_writable_buffer_is_shared():
    """A buffer that may be written to is shared."""
    data = bytearray(values.dumps(np.arange(BIG)))
    array = values.loads(data)
    array[0] = 9
    assert values.loads(data)[0] == 9


def test_dates_survive_without_buffers():
    """Dates come back where buffers cannot hold them."""
    dates = np.array(["2012-07-04", "NaT"], "M8[D]").repeat(BIG)
    assert np.array_equal(there_and_back(dates), dates, equal_nan=True)


def test_protocol_4_is_the_fallback():
    """What cannot do protocol 5 falls back to protocol 4."""
    value = there_and_back([OnlyOldPickle(np.arange(BIG)), np.arange(BIG)])
    assert np.array_equal(value[0].data, np.arange(BIG))
    assert np.array_equal(value[1], np.arange(BIG))


def test_session_definitions_are_pickled_by_value():
    """What a session defines is pickled by value."""
    script = """
        import sys
        from vinecore.protocol.serialization import values

        class Point:
            def __init__(self, x):
                self.x = x

            def double(self):
                return Point(2 * self.x)

        factor = 3
        data = values.dumps((lambda p: p.double().x * factor, Point(7)), by_value=True)
        sys.stdout.buffer.write(data)
    """
    made = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=True)
    function, point = values.loads(made.stdout)
    assert function(point) == 42


def test_lambda_is_pickled_by_value():
    """A lambda is pickled by value without being told."""
    offset = 5
    assert there_and_back(lambda x: x + offset)(1) == 6


def test_unpicklable_value_gives_reason():
    """What cannot be pickled at all says why."""
    with pytest.raises(TypeError, match="this holds a socket"):
        values.dumps([NeverPickled()])


@pytest.mark.parametrize("data", [b"", b"abc", b"x" * 100, b"VINEVAL1"])
def test_what_is_no_value_is_refused(data):
    with pytest.raises(ValueError, match="not a serialized value"):
        values.loads(data)


def test_foreign_file_is_refused(tmp_path):
    """A file that is no value is refused."""
    for content in (b"", b"abc", b"x" * 10_000):
        path = tmp_path / "value"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a serialized value"):
            values.load_file(str(path))


def test_truncated_value_is_refused():
    """A value that was cut short is not loaded."""
    data = values.dumps(np.arange(BIG))
    with pytest.raises((ValueError, pickle.UnpicklingError, EOFError)):
        values.loads(data[: len(data) // 2])


def test_only_argument_placeholders_are_filled():
    """Placeholders are filled among the arguments and not inside of them."""
    args = (InputPlaceholder(1), "x", SharedPlaceholder(0), [InputPlaceholder(0)])
    args, kwargs = there_and_back((args, {"key": InputPlaceholder(0)}))
    filled, filled_kwargs = substitute_placeholders(args, kwargs, ["function"], ["zero", "one"])
    assert filled[:3] == ["one", "x", "function"]
    assert repr(filled[3]) == "[InputPlaceholder(0)]"
    assert filled_kwargs == {"key": "zero"}
    assert substitute_placeholders((), {}, [], []) == ([], {})


class TestReadOnlyMappings:
    """What coffea gives every one of its arrays."""

    def behavior(self):
        content = {("add", n): (lambda x, n=n: x + n) for n in range(MIN_SHARED_BEHAVIOR)}
        return content, types.MappingProxyType(content)

    def test_unchanged_value_is_serialized_once(self):
        """One that is unchanged is serialized and loaded once."""
        _, mapping = self.behavior()
        first, second = values.dumps([mapping, 1]), values.dumps([mapping, 2])
        assert values.loads(first)[0] is values.loads(second)[0]
        assert values.loads(second)[0]["add", 7](1) == 8

    def test_one_that_has_changed_is_serialized_again(self):
        content, mapping = self.behavior()
        before = values.dumps(mapping)
        content["add", 7] = str.upper
        assert values.loads(values.dumps(mapping))["add", 7]("a") == "A"
        assert values.loads(before)["add", 7](1) == 8

    def test_equal_is_not_the_same(self):
        whole = values.dumps(types.MappingProxyType({"a": 1}))
        truth = values.dumps(types.MappingProxyType({"a": True}))
        assert values.loads(whole)["a"] is not values.loads(truth)["a"]

    def test_mutable_value_is_serialized_each_time(self):
        """What can change inside is serialized each time."""
        inner = [1]
        mapping = types.MappingProxyType({"a": inner})
        values.dumps(mapping)
        inner.append(2)
        assert values.loads(values.dumps(mapping))["a"] == [1, 2]

    def test_loaded_value_is_passed_on_unchanged(self):
        """A loaded one goes on as it came."""
        _, mapping = self.behavior()
        data = values.dumps(mapping)
        assert values.dumps(values.loads(data)) == data

    @pytest.mark.parametrize("by_value", [False, True])
    def test_large_behavior_is_serialized_once(self, by_value, monkeypatch):
        """A large behavior of an object is serialized once and stays its own."""
        pickled = count_pickles(monkeypatch)
        reader = Reader({("add", n): (lambda x, n=n: x + n) for n in range(MIN_SHARED_BEHAVIOR)})
        first = values.loads(values.dumps([reader, 1], by_value=by_value))[0]
        second = values.loads(values.dumps([reader, 2], by_value=by_value))[0]
        assert len(pickled) == 1
        first.behavior["add", 7] = None
        assert second.behavior["add", 7](1) == 8
        assert type(second) is Reader
        assert second.path == "events.root"

    def test_session_behavior_is_serialized_each_time(self, monkeypatch):
        """A behavior with what a session defines is serialized each time."""
        session = types.ModuleType("__main__")
        exec("cut = 5\ndef above(x): return x > cut", session.__dict__)
        reader = Reader({("above", n): session.above for n in range(MIN_SHARED_BEHAVIOR)})
        monkeypatch.setitem(sys.modules, "__main__", session)
        assert not values.loads(values.dumps(reader, by_value=True)).behavior["above", 0](5)
        session.cut = 4
        assert values.loads(values.dumps(reader, by_value=True)).behavior["above", 0](5)

    def test_serialization_changes_no_value(self):
        """What is serialized is not changed by that."""
        partial = functools.partial(int, base=2)
        before = partial.__reduce__()
        values.dumps(partial, by_value=True)
        assert partial.__reduce__() == before

    def test_what_makes_itself_is_left_to_it(self):
        reader = SelfMade(dict.fromkeys(range(MIN_SHARED_BEHAVIOR), str))
        assert values.loads(values.dumps(reader, by_value=True)).behavior == "made again"


class Reader:
    """As coffea reads with."""

    def __init__(self, behavior):
        self.path, self.behavior = "events.root", behavior


class SelfMade(Reader):
    def __reduce__(self):
        return SelfMade, ("made again",)


def count_pickles(monkeypatch):
    """The dictionaries that have been pickled as behavior."""
    pickled, pickle_it = [], cloudpickle_dumps

    def counted(value, **options):
        if type(value) is dict:
            pickled.append(value)
        return pickle_it(value, **options)

    monkeypatch.setattr(pickling, "cloudpickle_dumps", counted)
    return pickled


class Wrapper:
    """As many write it: what it has not, the wrapped one has."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)


class Record:
    def __init__(self, **fields):
        self.__dict__.update(fields)

    def __getattr__(self, name):
        return self.__dict__[name]


class Stated(Record):
    def __getstate__(self):
        return {"x": 2 * self.__dict__["x"]}

    def __setstate__(self, state):
        self.__dict__.update(state)


class Listed(list):
    def __getattr__(self, name):
        return self.__dict__[name]


@pytest.mark.parametrize("how", [{}, {"by_value": True}])
def test_objects_answering_everything_are_unchanged(how):
    """Objects that answer for what they have not come as they were."""
    wrapper = there_and_back(Wrapper(Wrapper([1, 2])), **how)
    assert type(wrapper) is Wrapper
    assert wrapper.count(1) == 1
    cycle = Record(x=np.arange(BIG))
    cycle.me = cycle
    record = there_and_back([cycle, cycle], **how)
    assert record[0] is record[1] is record[0].me
    assert record[0].x.tolist() == list(range(BIG))


def test_own_reducers_are_used():
    """Objects that say themselves how they are pickled are pickled so."""
    assert there_and_back(Stated(x=1)).x == 2


def test_opened_rntuple_is_read_elsewhere(tmp_path):
    """An opened rntuple is read in another process."""
    uproot = pytest.importorskip("uproot", reason="reads files: pip install uproot")
    if not hasattr(uproot.WritableDirectory, "mkrntuple"):
        pytest.skip("this uproot writes no RNTuples")
    with uproot.recreate(tmp_path / "events.root") as file:
        file.mkrntuple("Events", {"x": np.dtype("f8")}).extend({"x": np.arange(5.0)})
    events = uproot.open(str(tmp_path / "events.root"))["Events"]
    events["x"].array()  # it knows its columns now
    data = values.dumps(events)
    code = "import sys; from vinecore.protocol.serialization import values; print(values.loads(sys.stdin.buffer.read())['x'].array().tolist())"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
    assert done.stdout == b"[0.0, 1.0, 2.0, 3.0, 4.0]\n", done.stderr
