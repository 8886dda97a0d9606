"""Generators of random numbers that functions refer to which travel by value: as global variables, defaults, or of an enclosing function.

A script that makes ``rng = numpy.random.default_rng()`` and draws from it in its functions asks for numbers that nobody has chosen. If the generator
travelled with its state, every process that loads such a function would draw the same ones. So it travels as what it is, a generator without a
seed, and begins anew in each process. One with a seed that somebody chose keeps its state, and so do generators that are arguments: dask puts one into each
block of a random array.

NumPy draws 128 bits for a generator that is given no seed. A larger seed than `MAX_CHOSEN_SEED` is taken for such a one.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

MAX_CHOSEN_SEED = 1 << 64


def without_seed(value: Any) -> bool:
    """Whether a value is a generator of NumPy's that was given no seed."""
    numpy: Any = sys.modules.get("numpy.random.bit_generator")
    if numpy is None or not type(value).__module__.startswith("numpy.random"):
        return False
    bits = getattr(value, "bit_generator", None) or getattr(value, "_bit_generator", value)
    sequence = getattr(bits, "_seed_seq", None)
    if not isinstance(bits, numpy.BitGenerator) or not isinstance(sequence, numpy.SeedSequence):
        return False
    entropy = sequence.entropy
    return isinstance(entropy, int) and entropy >= MAX_CHOSEN_SEED and not sequence.spawn_key


class Unseeded:
    """Stands for a generator without a seed while a function is pickled."""

    def __init__(self, generator: Any) -> None:
        bits = getattr(generator, "bit_generator", None) or getattr(generator, "_bit_generator", None)
        kinds = [type(generator)] if bits is None else [type(generator), type(bits)]
        self._kinds = [(kind.__module__, kind.__qualname__) for kind in kinds]

    def __reduce__(self) -> Any:
        return make_unseeded, tuple(self._kinds)


def make_unseeded(*kinds: tuple[str, str]) -> Any:
    """Make a generator that nobody has seeded.

    Parameters
    ----------
    *kinds
        Module and name of the class of the generator, and of the bit generator inside, if it is not one itself.
    """
    made: Any = None
    for module, name in reversed(kinds):
        kind = getattr(importlib.import_module(module), name)
        made = kind() if made is None else kind(made)
    return made


def reduced_cell(cell: Any, known: dict[int, Unseeded]) -> Any:
    """Reduce a variable of an enclosing function that is a generator without a seed; NotImplemented for all others."""
    try:
        value = cell.cell_contents
    except ValueError:
        return NotImplemented
    if not without_seed(value):
        return NotImplemented
    return types.CellType, (known.setdefault(id(value), Unseeded(value)),)


def reduced_function(reduced: Any, known: dict[int, Unseeded]) -> Any:
    """Put `Unseeded` in the place of generators without a seed in a function, as cloudpickle has reduced it.

    Parameters
    ----------
    reduced
        What cloudpickle gives to pickle for a function that travels by value; anything else is given back as it is.
    known
        What stands for which generator in this pickle, by identity: one that two functions share stays one.
    """
    if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], tuple):
        return reduced
    attributes, slots = reduced[2]

    def fresh(value: Any) -> Any:
        return known.setdefault(id(value), Unseeded(value)) if without_seed(value) else value

    variables = {name: fresh(value) for name, value in (slots.get("__globals__") or {}).items()}
    defaults = slots.get("__defaults__")
    changed = {**slots, "__globals__": variables, "__defaults__": defaults and tuple(map(fresh, defaults))}
    return (*reduced[:2], (attributes, changed), *reduced[3:])
