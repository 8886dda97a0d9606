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
def test_arrays_that_are_not_in_one_piece_come_back_equal(array):
    assert np.array_equal(there_and_back(array), array)


def test_large_buffers_stay_out_of_the_pickle_and_begin_at_aligned_places():
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


def test_the_same_array_twice_is_one_array_afterwards():
    array = np.arange(BIG)
    first, second = there_and_back([array, array])
    assert first is second


def test_the_arrays_of_a_loaded_file_can_be_written_to_and_the_file_stays_as_it_is(tmp_path):
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


def test_arrays_of_a_loaded_file_lie_in_the_mapped_file(tmp_path):
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


def test_a_value_without_buffers_is_loaded_from_a_file_as_well(tmp_path):
    path = tmp_path / "value"
    path.write_bytes(values.dumps({"a": 1}))
    assert values.load_file(str(path)) == {"a": 1}


def test_arrays_loaded_from_bytes_can_be_written_to_and_leave_the_bytes_alone():
    data = values.dumps(np.arange(BIG))
    array = values.loads(data)
    array[:] = 0
    assert values.loads(data)[5] == 5


def test_a_buffer_that_may_be_written_to_is_shared():
    data = bytearray(values.dumps(np.arange(BIG)))
    array = values.loads(data)
    array[0] = 9
    assert values.loads(data)[0] == 9


def test_dates_come_back_where_buffers_cannot_hold_them():
    dates = np.array(["2012-07-04", "NaT"], "M8[D]").repeat(BIG)
    assert np.array_equal(there_and_back(dates), dates, equal_nan=True)


def test_what_cannot_do_protocol_5_falls_back_to_protocol_4():
    value = there_and_back([OnlyOldPickle(np.arange(BIG)), np.arange(BIG)])
    assert np.array_equal(value[0].data, np.arange(BIG))
    assert np.array_equal(value[1], np.arange(BIG))


def test_what_a_session_defines_is_pickled_by_value():
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


def test_a_lambda_is_pickled_by_value_without_being_told():
    offset = 5
    assert there_and_back(lambda x: x + offset)(1) == 6


def test_what_cannot_be_pickled_at_all_says_why():
    with pytest.raises(TypeError, match="this holds a socket"):
        values.dumps([NeverPickled()])


@pytest.mark.parametrize("data", [b"", b"abc", b"x" * 100, pickle.dumps(1), values.dumps(1)[:10]])
def test_what_is_no_value_is_refused(data):
    with pytest.raises(ValueError, match="not a serialized value"):
        values.loads(data)


def test_a_file_that_is_no_value_is_refused(tmp_path):
    for content in (b"", b"abc", b"x" * 10_000):
        path = tmp_path / "value"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a serialized value"):
            values.load_file(str(path))


def test_a_value_that_was_cut_short_is_not_loaded():
    data = values.dumps(np.arange(BIG))
    with pytest.raises((ValueError, pickle.UnpicklingError, EOFError)):
        values.loads(data[: len(data) // 2])


def test_placeholders_are_filled_among_the_arguments_and_not_inside_of_them():
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

    def test_one_that_is_unchanged_is_serialized_and_loaded_once(self):
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

    def test_what_can_change_inside_is_serialized_each_time(self):
        inner = [1]
        mapping = types.MappingProxyType({"a": inner})
        values.dumps(mapping)
        inner.append(2)
        assert values.loads(values.dumps(mapping))["a"] == [1, 2]

    def test_a_loaded_one_goes_on_as_it_came(self):
        _, mapping = self.behavior()
        data = values.dumps(mapping)
        assert values.dumps(values.loads(data)) == data

    @pytest.mark.parametrize("by_value", [False, True])
    def test_a_large_behavior_of_an_object_is_serialized_once_and_stays_its_own(self, by_value, monkeypatch):
        pickled = count_pickles(monkeypatch)
        reader = Reader({("add", n): (lambda x, n=n: x + n) for n in range(MIN_SHARED_BEHAVIOR)})
        first = values.loads(values.dumps([reader, 1], by_value=by_value))[0]
        second = values.loads(values.dumps([reader, 2], by_value=by_value))[0]
        assert len(pickled) == 1
        first.behavior["add", 7] = None
        assert second.behavior["add", 7](1) == 8
        assert type(second) is Reader
        assert second.path == "events.root"

    def test_a_behavior_with_what_a_session_defines_is_serialized_each_time(self, monkeypatch):
        session = types.ModuleType("__main__")
        exec("cut = 5\ndef above(x): return x > cut", session.__dict__)
        reader = Reader({("above", n): session.above for n in range(MIN_SHARED_BEHAVIOR)})
        monkeypatch.setitem(sys.modules, "__main__", session)
        assert not values.loads(values.dumps(reader, by_value=True)).behavior["above", 0](5)
        session.cut = 4
        assert values.loads(values.dumps(reader, by_value=True)).behavior["above", 0](5)

    def test_what_is_serialized_is_not_changed_by_that(self):
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
def test_objects_that_answer_for_what_they_have_not_come_as_they_were(how):
    wrapper = there_and_back(Wrapper(Wrapper([1, 2])), **how)
    assert type(wrapper) is Wrapper
    assert wrapper.count(1) == 1
    cycle = Record(x=np.arange(BIG))
    cycle.me = cycle
    record = there_and_back([cycle, cycle], **how)
    assert record[0] is record[1] is record[0].me
    assert record[0].x.tolist() == list(range(BIG))


def test_objects_that_say_themselves_how_they_are_pickled_are_pickled_so():
    assert there_and_back(Stated(x=1)).x == 2


def test_an_opened_rntuple_is_read_in_another_process(tmp_path):
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
