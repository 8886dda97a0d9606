"""How generators of random numbers travel, wherever they are held: in a variable, a container, an object, a partial, or as the owner of a method.

A script that makes ``rng = numpy.random.default_rng()`` and draws from it in its functions asks for numbers that nobody has chosen. If the generator
travelled with its state, every process that loads it would draw the same ones. So it travels as what it is, a generator without a
seed, and begins anew where it is loaded. One with a seed that somebody chose keeps its state, and so do those that were spawned from another one, with or without
a seed: they differ already, and dask puts one into each block of a random array. `vinecore.protocol.serialization.random_seeds` knows which is which.

The generators behind the functions of `random` and `numpy.random`, to which methods such as ``numpy.random.normal`` lead, become those of the other process.
`random.SystemRandom` has no state, and travels, too.
"""

from __future__ import annotations

import functools
import importlib
import random
import sys
from typing import Any, Callable

from vinecore.protocol.serialization import random_seeds


def loaded_packages() -> tuple[bool, bool]:
    """Tell whether the generators of NumPy and of PyTorch are there."""
    # what numpy.random imports last
    has_numpy = hasattr(sys.modules.get("numpy.random"), "RandomState")
    return has_numpy, hasattr(sys.modules.get("torch"), "Generator")


def make_reducers() -> dict[type, Callable[[Any], Any]]:
    """Give what reduces the generators and seed sequences of the packages that are loaded; `reduced` does for those of `random`."""
    has_numpy, has_torch = loaded_packages()
    found: dict[type, Callable[[Any], Any]] = {}
    if has_numpy:
        *kinds, bits = random_seeds.numpy_kinds()
        for kind in (*kinds, *vars(sys.modules["numpy.random"]).values()):
            if kind in kinds or (isinstance(kind, type) and issubclass(kind, bits)):
                found[kind] = reduce_generator
    if has_torch:
        found[sys.modules["torch"].Generator] = reduce_generator
    return found


def reduce_generator(value: Any) -> Any:
    """Reduce a generator, or a seed sequence, so that it begins anew where it is loaded; NotImplemented if somebody has seeded it."""
    if not random_seeds.is_unseeded(value):
        return NotImplemented
    kind: Any = type(value)
    if isinstance(value, random.SystemRandom):
        return make_system_random, (kind, vars(value))
    if value is random_seeds.global_random():
        return find_global, ("random", "_inst")
    if isinstance(value, random.Random):
        return kind, ()
    if random_seeds.is_global_numpy(value):
        return find_global, random_seeds.GLOBAL_NUMPY
    if isinstance(value, random_seeds.numpy_kinds()):
        if hasattr(value, "pool_size"):  # a seed sequence
            return functools.partial(kind, pool_size=value.pool_size), ()
        bits = random_seeds.bit_generator_of(value)
        return kind, (random_seeds.seed_sequence_of(bits) if bits is value else bits,)
    return make_torch_generator, (str(value.device),)


def find_global(module: str, name: str) -> Any:
    """Give the generator behind the functions of a module."""
    return getattr(importlib.import_module(module), name)


def make_system_random(kind: type[random.SystemRandom], attributes: dict[str, Any]) -> random.SystemRandom:
    """Make a generator that has no state, and refuses to be told one, as pickle would."""
    generator = kind.__new__(kind)
    vars(generator).update(attributes)
    return generator


def make_torch_generator(device: str) -> Any:
    """Make a generator of PyTorch's that nobody has seeded; it would always begin with the same number."""
    generator = importlib.import_module("torch").Generator(device)
    generator.seed()
    return generator
