"""Exceptions on their way: what arrives is what was raised."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
import threading
import traceback

import pytest

from vinecore.errors import RemoteError, add_note
from vinecore.protocol.serialization import exceptions, tracebacks, values


def raised(function):
    """What a function raises."""
    try:
        function()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError


def sent(error):
    """The exception as it arrives elsewhere."""
    return exceptions.load_exception(exceptions.dump_exception(error), RemoteError)


def shown(error):
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def raising(error):
    def fail():
        raise error

    return fail


class Formatting(Exception):
    """Its constructor makes other arguments of its own."""

    def __init__(self, run, lumi):
        super().__init__(f"bad run {run}")
        self.lumi = lumi


class SameNumber(Exception):
    """Pickle would call its constructor again, with the text that it has made."""

    def __init__(self, run):
        super().__init__(f"bad run {run}")


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Slotted(Exception):
    __slots__ = ("run",)

    def __init__(self, run):
        self.run = run


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    run: int


class Reduced(Exception):
    def __init__(self, *, path):
        super().__init__(path)
        self.path = path

    def __reduce__(self):
        return _reduced, (self.path,)


def _reduced(path):
    return Reduced(path=path)


class BadlyReduced(Exception):
    def __reduce__(self):
        return int, ("no number",)


class Path(OSError):
    def __init__(self, path):
        super().__init__(5, "cannot read", path)
        self.path = path


class Silent(OSError):
    def __init__(self, first, second):
        self.both = first + second


class Odd(ValueError):
    """Takes neither notes nor attributes."""

    __notes__ = 3

    def __setattr__(self, name, value):
        raise RuntimeError(name)


EXCEPTIONS = [
    ValueError("wrong", 3),
    Formatting(1, 2),
    SameNumber(3),
    Slotted(4),
    Frozen(5),
    Reduced(path="x.root"),
    BadlyReduced("said"),
    Path("x.root"),
    Silent("one", "two"),
    Odd("odd"),
    KeyError("Muon_pt"),
    FileNotFoundError(2, "no file", "x.root"),
    OSError(5, "cannot move", "from", None, "to"),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "no text"),
    SyntaxError("bad cut", ("cuts.txt", 3, 7, "pt >")),
    StopIteration(4),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    ImportError("no module", name="uproot", path="/x"),
    NameError("no name", name="pt"),
]


@pytest.mark.parametrize("error", EXCEPTIONS, ids=lambda error: type(error).__name__)
def test_an_exception_arrives_as_it_was(error):
    arrived = sent(raised(raising(error)))
    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)
    for name in (
        "errno",
        "filename",
        "filename2",
        "code",
        "value",
        "name",
        "path",
        "reason",
        "lineno",
        "run",
    ):
        assert getattr(arrived, name, None) == getattr(error, name, None)
    assert shown(arrived) == shown(error)


@pytest.mark.parametrize("error", EXCEPTIONS, ids=lambda error: type(error).__name__)
def test_an_exception_is_a_value_like_others(error):
    if isinstance(error, BadlyReduced):
        pytest.skip("its class says how it is pickled")
    tblib = pytest.importorskip(
        "tblib.pickling_support", reason="dask has it pickle exceptions, if it is there"
    )
    tblib.install(error)
    (arrived,) = values.loads(values.dumps([raised(raising(error))]))
    assert type(arrived) is type(error)
    assert (arrived.args, str(arrived), vars(arrived)) == (error.args, str(error), vars(error))
    assert getattr(arrived, "errno", None) == getattr(error, "errno", None)
    if not isinstance(error, Reduced):
        assert shown(arrived) == shown(error)


def deep(n):
    return deep(n - 1)


def test_exception_with_failing_text_is_itself():
    """An exception whose text raises comes as itself."""
    arrived = sent(raised(raising(Speechless(1))))
    assert type(arrived) is Speechless
    assert arrived.args == (1,)
    assert (
        exceptions.summarize_exception(arrived)
        == "Speechless: <Speechless that says nothing: its text raised RuntimeError>"
    )
    assert "exception str() failed" in shown(arrived) or "unprintable" in shown(arrived)


def test_endless_recursion_keeps_traceback():
    """A recursion without end comes with its traceback."""
    error = raised(lambda: deep(0))
    arrived = sent(error)
    assert type(arrived) is RecursionError
    assert shown(arrived) == shown(error)


def test_a_traceback_of_any_length_is_bounded(monkeypatch):
    monkeypatch.setattr(tracebacks, "MAX_FRAMES", 10)
    error = raised(lambda: deep(0))
    assert len(traceback.extract_tb(sent(error).__traceback__)) == 10


def test_causes_contexts_and_cycles_arrive():
    def fail():
        try:
            {}[3]
        except KeyError as first:
            try:
                raise NameError("pt")
            except NameError as second:
                first.__cause__ = second  # who reads this goes round in a circle
                raise Formatting(1, 2) from first

    error = raised(fail)
    arrived = sent(error)
    assert [type(e) for e in (arrived.__cause__, arrived.__cause__.__cause__)] == [KeyError, NameError]
    assert arrived.__cause__.__cause__.__context__ is arrived.__cause__
    assert shown(arrived) == shown(error)


def test_a_long_history_arrives():
    error = ValueError(0)
    for n in range(1, 5000):
        following = ValueError(n)
        following.__context__, error = error, following
    arrived = sent(error)
    assert arrived.__context__.__context__.args == (4997,)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are newer")
def test_groups_within_groups_arrive_with_all_tracebacks():
    class Several(ExceptionGroup):  # noqa: F821
        pass

    inner = ExceptionGroup("inner (1)", [raised(raising(Formatting(1, 2)))])  # noqa: F821
    error = raised(raising(Several("outer", [inner, raised(raising(Path("x.root")))])))
    arrived = sent(error)
    assert type(arrived) is Several
    assert (arrived.message, len(arrived.exceptions)) == ("outer", 2)
    assert type(arrived.exceptions[0].exceptions[0]) is Formatting
    assert shown(arrived) == shown(error)


def test_unpicklable_exception_becomes_text_with_note():
    """What cannot be pickled comes as its text and a note says so."""
    error = ValueError("holds", threading.Lock())
    error.lines, error.number = (line for line in ()), 7
    arrived = sent(error)
    assert (type(arrived), arrived.args[0], arrived.number) == (ValueError, "holds", 7)
    assert "lock object" in repr(arrived.args[1])
    assert "generator object" in repr(arrived.lines)
    assert "its attribute 'lines', a generator, cannot be pickled" in "\n".join(arrived.__notes__)


def test_local_class_is_same_afterwards():
    """A class of a function of this process is the same class afterwards."""

    class Local(Exception):
        pass

    assert type(sent(Local("here"))) is Local


def test_unknown_class_is_caught_by_base(tmp_path):
    """A class that is not known here is still caught by what it derives from."""
    (tmp_path / "only_there.py").write_text("class NoBranch(KeyError):\n    pass\n")
    program = """
        import only_there, sys
        from vinecore.protocol.serialization import exceptions
        try:
            raise only_there.NoBranch("Muon_pt")
        except KeyError as error:
            sys.stdout.buffer.write(exceptions.dump_exception(error))
    """
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    arrived = exceptions.load_exception(done.stdout, RemoteError)
    assert isinstance(arrived, KeyError)
    assert isinstance(arrived, RemoteError)
    assert type(arrived).__qualname__ == "NoBranch"
    assert str(arrived) == "'Muon_pt'"
    assert 'File "<string>", line 5, in <module>' in shown(arrived)


def test_notes_go_onto_everything_that_takes_them():
    frozen = Frozen(1)
    for error in (frozen, Odd("odd"), Slotted(2)):
        add_note(error, "in vertex 7")
    assert frozen.__notes__ == ["in vertex 7"]


def test_marks_below_line_are_in_place():
    """The marks below a line are at the right place."""

    def fail():
        return 1 + {}["x"] + 1

    error = raised(fail)
    assert shown(sent(error)) == shown(error)
