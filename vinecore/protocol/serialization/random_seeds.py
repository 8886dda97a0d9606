"""Which generators of random numbers were given a seed by somebody; those that were given none must differ in each process.

A generator does not tell. So what gives them their seeds is watched from the time that `watch_seeding` is called:

- NumPy draws the seed of a generator that is given none with `secrets.randbits`: those numbers are remembered.
- ``numpy.random.seed()`` without a number draws one, too, but leaves no trace of it: that it was called is remembered.
- A `random.Random` that is seeded with something, or told its state, is remembered, and so is one that is seeded with nothing.

What was there before is judged by what can be seen: NumPy draws 128 bits, so a seed of `MIN_DRAWN_SEED` or more is taken for a drawn one; of a `random.Random` nothing
is known.
"""

from __future__ import annotations

import functools
import gc
import random
import secrets
import sys
from typing import Any, Callable

from vinecore.protocol.import_hooks import call_when_imported

MIN_DRAWN_SEED = 1 << 64
MAX_DRAWN_SEEDS = 200_000
"""Drawn seeds that are remembered one by one; with more of them, every seed of `MIN_DRAWN_SEED` or more counts as drawn."""
TORCH_UNSEEDED = 67280421310721
"""What a ``torch.Generator()`` is seeded with."""
GLOBAL_NUMPY = "numpy.random.mtrand", "_rand"
"""The generator behind the functions of `numpy.random`."""


class SeedRecord:
    """What is known of the seeds of this process, since it is watched."""

    def __init__(self) -> None:
        self.installed = False
        self.drawn: set[int] = set()  # those that the operating system has given
        self.are_all_known = False
        self.chosen: dict[
            int, bool
        ] = {}  # identities of `random.Random` objects, and whether somebody has seeded them
        self.is_numpy_unseeded = False  # numpy.random.seed() without a number was the last that was said

    def was_drawn(self, entropy: Any) -> bool:
        """Whether nobody has chosen this entropy of a seed sequence of NumPy's."""
        if not isinstance(entropy, int):
            return False
        if self.are_all_known:
            return entropy in self.drawn
        return entropy >= MIN_DRAWN_SEED

    def add_drawn(self, entropy: int) -> None:
        """Remember a seed that the operating system has given."""
        self.drawn.add(entropy)
        if len(self.drawn) > MAX_DRAWN_SEEDS:
            self.drawn.clear()
            self.are_all_known = False


seeds = SeedRecord()


def watch_seeding() -> None:
    """Have this process remember which generators get no seed; a second time it does nothing."""
    if seeds.installed:
        return
    seeds.installed = seeds.are_all_known = True
    for name in ("seed", "setstate"):
        _watch_method(name, getattr(random.Random, name))
        setattr(random, name, getattr(global_random(), name))
    numpy: Any = sys.modules.get("numpy.random.bit_generator")
    if numpy is None:
        _watch_secrets()
    else:
        _remember_earlier(numpy)
        numpy.randbits = _record_draws(numpy.randbits)
    call_when_imported("numpy.random.mtrand", _watch_numpy)


def is_unseeded(value: Any) -> bool:
    """Whether a value is a generator, or a seed sequence, that nobody has seeded, as far as that is known."""
    if isinstance(value, random.Random):
        if isinstance(value, random.SystemRandom):
            return True
        if value is global_random():
            return not seeds.chosen.get(id(value), False)
        is_watched = type(value).seed is random.Random.seed
        return is_watched and seeds.chosen.get(id(value)) is False
    torch: Any = sys.modules.get("torch")
    if torch is not None and type(value) is getattr(torch, "Generator", None):
        return bool(value.initial_seed() == TORCH_UNSEEDED)
    if not isinstance(value, numpy_kinds()):
        return False
    if is_global_numpy(value) and seeds.is_numpy_unseeded:
        return True
    # a RandomState that was seeded has none
    sequence = value if hasattr(value, "spawn_key") else seed_sequence_of(bit_generator_of(value))
    # what is spawned from one without a seed is different from its siblings already
    return not getattr(sequence, "spawn_key", ()) and seeds.was_drawn(getattr(sequence, "entropy", None))


def numpy_kinds() -> tuple[type, ...]:
    """Give the classes of NumPy's generators, bit generators and seed sequences; none before it is loaded."""
    # what numpy.random imports last
    return _numpy_kinds() if hasattr(sys.modules.get("numpy.random"), "RandomState") else ()


@functools.lru_cache(maxsize=1)
def _numpy_kinds() -> tuple[type, ...]:
    numpy: Any = sys.modules["numpy.random"]
    return numpy.Generator, numpy.RandomState, numpy.SeedSequence, numpy.BitGenerator


def is_global_numpy(value: Any) -> bool:
    """Whether a value is the generator behind the functions of `numpy.random`."""
    return value is not None and value is getattr(sys.modules.get(GLOBAL_NUMPY[0]), GLOBAL_NUMPY[1], None)


def bit_generator_of(generator: Any) -> Any:
    """Give the bit generator of a generator of NumPy's; a bit generator itself is given back."""
    return getattr(generator, "bit_generator", None) or getattr(generator, "_bit_generator", generator)


def seed_sequence_of(bits: Any) -> Any:
    """Give the seed sequence of a bit generator of NumPy's."""
    return getattr(bits, "_seed_seq", None)


def global_random() -> Any:
    """Give the generator behind the functions of `random`."""
    return random._inst  # noqa: SLF001 - the object behind the functions of `random` has no other name


# ---- what is put in the place of what gives seeds


def _watch_method(name: str, usual: Callable[..., Any]) -> None:
    @functools.wraps(usual)
    def method(self: random.Random, *args: Any, **kwargs: Any) -> Any:
        given = (*args[:1], kwargs.get("a"))
        seeds.chosen[id(self)] = name == "setstate" or any(value is not None for value in given)
        return usual(self, *args, **kwargs)

    setattr(random.Random, name, method)


def _record_draws(draw: Callable[[int], int]) -> Callable[[int], int]:
    @functools.wraps(draw)
    def randbits(k: int) -> int:
        bits = draw(k)
        seeds.add_drawn(bits)
        return bits

    return randbits


def _watch_secrets() -> None:
    """Have NumPy take what remembers when it is imported, and nobody else after that: who draws a seed himself has chosen it."""
    module: Any = secrets
    usual = module.randbits
    module.randbits = _record_draws(usual)

    def put_back(_numpy: Any) -> None:
        module.randbits = usual

    call_when_imported("numpy.random.bit_generator", put_back)


def _remember_earlier(numpy: Any) -> None:
    for one in gc.get_objects():
        if type(one) is numpy.SeedSequence and isinstance(one.entropy, int) and one.entropy >= MIN_DRAWN_SEED:
            seeds.add_drawn(one.entropy)


def _watch_numpy(numpy: Any) -> None:
    package = sys.modules.get("numpy.random")
    for name in ("seed", "set_state"):
        watched = _watched_global(name, getattr(numpy, name))
        setattr(numpy, name, watched)
        if hasattr(package, name):
            setattr(package, name, watched)


def _watched_global(name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(usual)
    def function(*args: Any, **kwargs: Any) -> Any:
        result = usual(*args, **kwargs)
        given = (*args[:1], kwargs.get("seed"))
        seeds.is_numpy_unseeded = name == "seed" and all(value is None for value in given)
        return result

    function.__module__, function.__qualname__ = "numpy.random", name
    return function
