"""Random numbers that nobody has seeded differ from task to task, as they do with dask's own schedulers; seeded ones are what was asked for."""

from __future__ import annotations

import copy
import importlib.util
import random
import secrets
import sys
import textwrap

import dask
import numpy as np
import pytest

from daskvine import DaskVine
from daskvine.fingerprint import Fingerprinter
from tests.daskvine.conftest import MODES
from vinecore.protocol.serialization.values import dumps, loads

TASKS = 20
PACKAGE = """
    import os, random
    import numpy as np

    IMPORTED_BY = os.getpid()
    generator = np.random.default_rng()
    state = np.random.RandomState()
    state.normal()  # the second of a pair is kept
    sequence = np.random.SeedSequence()
    child = np.random.default_rng(np.random.SeedSequence().spawn(1)[0])
    philox = np.random.Generator(np.random.Philox())
    plain = random.Random()
    copied = random.Random()
    copied.setstate(random.Random(7).getstate())
    np.random.normal()

    seeded = {
        "generator": np.random.default_rng(42),
        "large": np.random.default_rng(0x3034C61A9AE04FF8CB62AB8EC2C4B501),
        "state": np.random.RandomState(42),
        "plain": random.Random(42),
    }

    DRAWS = {
        "numpy": lambda: np.random.normal(),
        "python": random.random,
        "generator": generator.random,
        "spawned": lambda: generator.spawn(1)[0].random(),
        "state": state.normal,
        "sequence": lambda: np.random.default_rng(sequence.spawn(1)[0]).random(),
        "child": child.random,
        "philox": philox.random,
        "plain": plain.random,
    }


    def draw(number):
        return {kind: float(function()) for kind, function in DRAWS.items()}, IMPORTED_BY == os.getpid()


    def draw_seeded(number):
        return *(float(one.random()) for one in (*seeded.values(), copied)), os.getpid()
"""
TORCH = """
    import torch

    own = torch.Generator()
    seeded = torch.Generator().manual_seed(42)


    def draw(kind, number):
        return float(torch.rand(1, generator={"default": None, "own": own, "seeded": seeded}[kind]))
"""


RESEEDED = """
    import random
    import numpy as np

    np.random.seed(5)
    np.random.seed()
    random.seed()


    def draw(number):
        return np.random.normal(), random.random()
"""


MODULES = ["vine_draws", "vine_reseeded_draws", "dask.array"]
MODULES += [name for name in ("vine_torch_draws",) if importlib.util.find_spec("torch")]
MODULES += [name for name in ("scipy.stats",) if importlib.util.find_spec("scipy")]


@pytest.fixture(scope="module")
def m(tmp_path_factory):
    """A vine that has packages of its own, which are imported before any process forks."""
    folder = tmp_path_factory.mktemp("env") / "lib" / "site-packages"
    folder.mkdir(parents=True)
    for name, text in (
        ("vine_draws", PACKAGE),
        ("vine_torch_draws", TORCH),
        ("vine_reseeded_draws", RESEEDED),
    ):
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        with DaskVine.local(cores=2) as m:
            yield m
    sys.modules.pop("vine_draws", None)


@pytest.fixture(scope="module", params=MODES)
def task_mode(request):
    """One mode after the other, because a library that is idle makes room for tasks, and takes its time to start again."""
    return request.param


@pytest.fixture
def calls(m, task_mode):
    """Options of a computation in which all of the libraries and modules of this page are imported once, before any process forks."""
    options = {"scheduler": m.get, "task_mode": task_mode, "progress_disable": True}
    if task_mode == "function-calls":
        options["import_modules"] = MODULES
    return options


@pytest.fixture
def warm(calls):
    """Compute something, when the process that forks has imported the package."""

    def compute(function, *args):
        dask.compute(dask.delayed(function)(*args, -1), **calls)
        return dask.compute(*(dask.delayed(function)(*args, n, pure=False) for n in range(TASKS)), **calls)

    return compute


def test_unseeded_numbers_differ_between_tasks(warm):
    """What is not seeded differs in each task."""
    draws = importlib.import_module("vine_draws")
    found = warm(draws.draw)
    assert count_each([values for values, _here in found]) == dict.fromkeys(draws.DRAWS, TASKS)
    assert not any(here for _values, here in found), "it was to be imported before the fork"


def test_none_seeded_numbers_differ_between_tasks(warm):
    """What is seeded with nothing differs in each task."""
    draws = importlib.import_module("vine_reseeded_draws")
    assert [len(set(values)) for values in zip(*warm(draws.draw), strict=True)] == [TASKS, TASKS]


def test_seeded_numbers_follow_their_seed(warm):
    """What is seeded draws what its seed gives."""
    draws = importlib.import_module("vine_draws")
    of_each = {}
    for *values, pid in warm(draws.draw_seeded):
        of_each.setdefault(pid, []).append(values)
    expected = [
        np.random.default_rng(42),
        np.random.default_rng(0x3034C61A9AE04FF8CB62AB8EC2C4B501),
        np.random.RandomState(42),
        random.Random(42),
        random.Random(7),
    ]
    whole = [[float(one.random()) for one in expected] for _ in range(TASKS + 2)]
    for found in of_each.values():
        start = whole.index(found[0])  # an earlier computation may have drawn before
        assert found == whole[start : start + len(found)]
        assert start <= 1


@pytest.mark.parametrize("kind", ["default", "own"])
def test_unseeded_pytorch_differs_between_tasks(warm, kind):
    """What pytorch draws unseeded differs in each task."""
    pytest.importorskip("torch")
    draws = importlib.import_module("vine_torch_draws")
    assert len(set(warm(draws.draw, kind))) == TASKS


def test_seeded_pytorch_follows_its_seed(warm, task_mode):
    """What pytorch draws seeded is what its seed gives."""
    torch = pytest.importorskip("torch")
    draws = importlib.import_module("vine_torch_draws")
    first = float(torch.rand(1, generator=torch.Generator().manual_seed(42)))
    assert set(warm(draws.draw, "seeded")) >= {first}


def test_script_functions_with_numpy_differ(calls):
    """Numpy in functions of the script differs in each task."""

    def draw(number):
        return np.random.random()  # noqa: NPY002 - the state that all share is the subject

    found = dask.compute(*(dask.delayed(draw)(n) for n in range(TASKS)), **calls)
    assert len(set(found)) == TASKS


# ---- generators of a script, which functions of the script refer to

SCRIPT = """
    import numpy as np

    generator = np.random.default_rng()
    state = np.random.RandomState()
    philox = np.random.Philox()
    seeded = np.random.default_rng(42)


    def draw(number, default=np.random.default_rng()):
        drawn = generator.random(), again(), state.normal(), np.random.Generator(philox).random(), default.random()
        return *map(float, drawn), float(seeded.random())


    def again():
        return generator.random()
"""


def test_unseeded_script_generators_differ(calls):
    """Unseeded generators of a script differ in each task."""
    draw = script_of(SCRIPT)["draw"]
    found = dask.compute(*(dask.delayed(draw, pure=False)(n) for n in range(TASKS)), **calls)
    assert [len(set(values)) for values in zip(*found, strict=True)][:-1] == [TASKS] * 5
    assert np.random.default_rng(42).random() in {values[-1] for values in found}


def test_unseeded_closure_generator_differs(calls):
    """An unseeded generator of an enclosing function differs in each task."""
    generator = np.random.default_rng()
    vertices = [dask.delayed(lambda _: float(generator.random()), pure=False)(n) for n in range(TASKS)]
    assert len(set(dask.compute(*vertices, **calls))) == TASKS


@pytest.mark.parametrize("kind", ["default_rng", "RandomState"])
def test_dask_random_arrays_are_reproducible(calls, kind):
    """Random arrays of dask are the same each time."""
    array = getattr(pytest.importorskip("dask.array").random, kind)().normal(size=40, chunks=10)
    first = array.compute(**calls)
    assert (array.compute(**calls) == first).all()
    assert (array.compute(scheduler="synchronous") == first).all()


def test_functions_share_generator_remotely():
    """Two functions that share a generator share it where they run."""
    script = script_of(SCRIPT)
    draw, again = loads(dumps((script["draw"], script["again"]), by_value=True))
    assert draw.__globals__["generator"] is again.__globals__["generator"]
    assert draw.__globals__["generator"].random() != script["generator"].random()
    assert draw.__globals__["seeded"].random() == script["seeded"].random()


# ---- generators that a script holds in something else

HELD = """
    import functools
    import random
    import secrets
    import numpy as np


    class Smearing:
        shared = np.random.default_rng()

        def __init__(self):
            self.own = random.Random()

        def __call__(self):
            return self.own.random()

        def draw(self):
            return self.shared.random()


    def enclosing():
        generators = [random.Random(), np.random.default_rng()]
        return lambda: generators[0].random() + generators[1].random()


    def with_default(*, generator={"one": np.random.RandomState()}):
        return generator["one"].normal()


    smearing = Smearing()
    plain, system, secret = random.Random(), random.SystemRandom(), secrets.SystemRandom()
    known = {"generator": np.random.default_rng(), "list": [np.random.RandomState()]}
    philox = np.random.Generator(np.random.Philox())
    sequence = np.random.SeedSequence()

    DRAWS = {
        "dict": lambda: known["generator"].random(),
        "list": lambda: known["list"][0].random_sample(),
        "plain": lambda: plain.random(),
        "gauss": plain.gauss,
        "system": lambda: system.random(),
        "secret": secret.random,
        "callable": smearing,
        "method": smearing.draw,
        "class": lambda: Smearing.shared.random(),
        "enclosing": enclosing(),
        "default": with_default,
        "bound": np.random.default_rng().random,
        "partial": functools.partial(np.random.RandomState().normal, 5.0),
        "of philox": philox.normal,
        "of all": np.random.normal,
        "of python": random.random,
        "of python, too": random.normalvariate,
        "sequence": lambda: np.random.default_rng(sequence.spawn(1)[0]).random(),
    }


    def draw(number):
        return {kind: float(function()) for kind, function in DRAWS.items()}
"""
FROZEN = """
    import scipy.stats

    frozen = scipy.stats.norm()
    draws = scipy.stats.expon.rvs


    def draw(number):
        return {"frozen": float(frozen.rvs()), "all": float(draws())}
"""
SEEDED = {
    "generator": lambda: np.random.default_rng(42),
    "large": lambda: np.random.default_rng(0x3034C61A9AE04FF8CB62AB8EC2C4B501),
    "drawn by the program": lambda: np.random.default_rng(secrets.randbits(128)),
    "state": lambda: np.random.RandomState(42),
    "plain": lambda: random.Random(42),
    "told its state": lambda: copy.copy(random.Random()),
    "spawned": lambda: np.random.default_rng().spawn(1)[0],
}


def script_of(text):
    script = {"__name__": "__main__"}
    exec(textwrap.dedent(text), script)
    return script


def count_each(found):
    return {kind: len({values[kind] for values in found}) for kind in found[0]}


@pytest.mark.parametrize("text", [HELD, FROZEN])
def test_unseeded_generators_differ_in_any_holder(warm, text):
    """Unseeded generators differ in each task however they are held."""
    if text is FROZEN:
        pytest.importorskip("scipy")
    draw = script_of(text)["draw"]
    counts = count_each(warm(draw))
    assert counts == dict.fromkeys(counts, TASKS)
    vertices = [dask.delayed(draw, pure=False)(n) for n in range(TASKS)]
    assert counts == count_each(dask.compute(*vertices, scheduler="synchronous"))


def test_unseeded_argument_generator_differs(calls):
    """An unseeded generator that is an argument differs in each task."""
    given = [np.random.default_rng(), np.random.RandomState(), random.Random(), random.SystemRandom()]

    def draw(generators, number):
        return {n: float(one.random()) for n, one in enumerate(generators)}

    vertices = [dask.delayed(draw, pure=False, traverse=False)(given, n) for n in range(TASKS)]
    counts = count_each(dask.compute(*vertices, **calls))
    assert counts == dict.fromkeys(counts, TASKS)


def test_seeded_argument_generator_keeps_state(calls):
    """A seeded generator that is an argument has its state in each task."""
    given = {kind: make() for kind, make in SEEDED.items()}

    def draw(generators, number):
        return {kind: float(one.random()) for kind, one in generators.items()}

    vertices = [dask.delayed(draw, pure=False)(dict(given), n) for n in range(4)]
    found = dask.compute(*vertices, **calls)
    assert list(found) == [draw(given, 0)] * 4


@pytest.mark.parametrize("kind", SEEDED)
def test_a_seeded_generator_has_one_name(kind):
    generator = SEEDED[kind]()
    one, other = Fingerprinter().fingerprint(generator), Fingerprinter().fingerprint(copy.copy(generator))
    assert not one.is_nondeterministic
    assert one.digest == other.digest


def test_unseeded_draws_are_not_reused():
    """What draws from an unseeded generator is not reused."""
    assert all(
        Fingerprinter().fingerprint(draw).is_nondeterministic for draw in script_of(HELD)["DRAWS"].values()
    )


def test_numpy_generator_is_seeded_until_none():
    """The generator of numpy counts as seeded until it is seeded with nothing."""
    draw = np.random.random
    state = np.random.get_state()  # noqa: NPY002 - the state that all share is the subject
    try:
        np.random.seed(42)  # noqa: NPY002
        assert loads(dumps(draw, by_value=True))() == draw()
        np.random.seed()  # noqa: NPY002
        assert loads(dumps(draw, by_value=True)).__self__ is draw.__self__
    finally:
        np.random.set_state(state)  # noqa: NPY002


def test_unseeded_pytorch_generator_begins_anew():
    """A generator of pytorch without a seed begins anew."""
    torch = pytest.importorskip("torch")
    first, other = (loads(dumps([torch.Generator()], by_value=True))[0] for _ in range(2))
    assert first.initial_seed() != other.initial_seed()
    seeded = torch.Generator().manual_seed(42)
    assert loads(dumps([seeded], by_value=True))[0].initial_seed() == 42
