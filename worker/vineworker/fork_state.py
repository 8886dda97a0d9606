"""What a fork copies and each process must have for itself: above all, the state of random numbers.

Two processes that were forked from one would draw the same numbers. Python reseeds its own `random` in each child. The generators of NumPy, the
`random.Random` objects and the generators of PyTorch that are there when a process forks are reseeded here, unless they were seeded with a number
that somebody chose: who says ``default_rng(42)`` gets what that gives. What tells:

- NumPy draws the seed of a generator that is given none with `secrets.randbits`: that is remembered here. ``numpy.random.seed(n)`` and
  ``RandomState(n)`` leave no such seed.
- A `random.Random` that is seeded with something, or told its state, is remembered here.
- PyTorch seeds a generator that nobody seeds with one fixed number, and its default one with 64 random bits.

Objects are found once, before they are frozen out of the garbage collector's sight, so that a fork costs a few microseconds for each of them, and
nothing where there is none.
"""

from __future__ import annotations

import gc
import random
import secrets
import sys
from typing import Any, Callable

TORCH_UNSEEDED = 67280421310721
"""What a ``torch.Generator()`` is seeded with."""
TORCH_MOST_CHOSEN = 1 << 32
"""The default generator of PyTorch has a larger seed, if nobody has chosen one."""
AT_ONCE = 10_000


class Seeds:
    """What is known of the seeds of this process, as long as it is watched."""

    def __init__(self) -> None:
        self.watched = False
        self.drawn: set[int] = set()  # those that the operating system has given
        self.chosen: set[int] = (
            set()
        )  # identities of the `random.Random` objects that were seeded with something


_seeds = Seeds()
_found: dict[int, Any] = {}  # by identity: what may have to be renewed after a fork
_verdicts: dict[type, bool] = {}


def watch() -> None:
    """Have this process remember which generators get no seed; before NumPy is imported."""
    _seeds.watched = True
    draw = secrets.randbits

    def randbits(k: int) -> int:
        bits = draw(k)
        if _seeds.watched:
            _seeds.drawn.add(bits)
        return bits

    secrets.randbits = randbits
    loaded: Any = sys.modules.get("numpy.random.bit_generator")
    if loaded is not None:
        loaded.randbits = randbits
    for name in ("seed", "setstate"):
        _watch_method(name, getattr(random.Random, name))


def _watch_method(name: str, usual: Callable[..., Any]) -> None:
    def method(self: random.Random, *args: Any, **kwargs: Any) -> Any:
        if _seeds.watched:
            chosen = name == "setstate" or any(value is not None for value in (*args[:1], kwargs.get("a")))
            (_seeds.chosen.add if chosen else _seeds.chosen.discard)(id(self))
        return usual(self, *args, **kwargs)

    method.__doc__ = usual.__doc__
    setattr(random.Random, name, method)


def find_generators() -> None:
    """Find all generators of random numbers that the garbage collector knows of; before `gc.freeze`, which hides them."""
    _verdicts.clear()  # a class that was judged before NumPy was there
    known = gc.get_objects()
    for one in known:
        if _is_generator(type(one)):
            _found[id(one)] = one
    torch: Any = sys.modules.get("torch")
    if torch is not None:  # its generators are not known to the collector, but to those that refer to them
        for start in range(0, len(known), AT_ONCE):
            for one in gc.get_referents(*known[start : start + AT_ONCE]):
                if type(one) is torch.Generator:
                    _found[id(one)] = one


def _is_generator(kind: type) -> bool:
    verdict = _verdicts.get(kind)
    if verdict is None:
        kinds: list[type] = [random.Random]
        for module, names in (
            ("numpy.random.bit_generator", ("BitGenerator", "SeedSequence")),
            ("numpy.random.mtrand", ("RandomState",)),
        ):
            if module in sys.modules:
                kinds += [getattr(sys.modules[module], name) for name in names]
        verdict = _verdicts[kind] = issubclass(kind, tuple(kinds)) and not issubclass(
            kind, random.SystemRandom
        )
    return verdict


def renew() -> None:
    """Give this process, which has just been forked, random numbers of its own; Python itself has reseeded `random`."""
    _seeds.watched = False  # nothing that is made from now on is copied
    if "numpy.random.mtrand" in sys.modules:
        _renew_numpy()
    torch: Any = sys.modules.get("torch")
    for one in _found.values():
        if isinstance(one, random.Random):
            if id(one) not in _seeds.chosen:
                one.seed()
        elif torch is not None and type(one) is torch.Generator and one.initial_seed() == TORCH_UNSEEDED:
            one.seed()
    if torch is not None and torch.initial_seed() >= TORCH_MOST_CHOSEN:
        torch.seed()


def _renew_numpy() -> None:
    bits: Any = sys.modules["numpy.random.bit_generator"]
    legacy: Any = sys.modules["numpy.random.mtrand"]
    renewed = {
        id(one) for one in _found.values() if isinstance(one, bits.SeedSequence) and _renew_sequence(one)
    }
    for one in _found.values():
        if isinstance(one, bits.BitGenerator) and id(sequence := getattr(one, "_seed_seq", None)) in renewed:
            one.state = type(one)(sequence).state
    for one in _found.values():
        if isinstance(one, legacy.RandomState):
            made = getattr(one, "_bit_generator", None)
            if id(getattr(made, "_seed_seq", None)) in renewed:
                _forget_half_a_pair(one)


def _renew_sequence(sequence: Any) -> bool:
    """Have a seed sequence begin with another seed, if the system gave it the one it has; what it is for others stays."""
    if not isinstance(sequence.entropy, int) or sequence.entropy not in _seeds.drawn:
        return False
    sequence.__init__(
        spawn_key=sequence.spawn_key,
        pool_size=sequence.pool_size,
        n_children_spawned=sequence.n_children_spawned,
    )
    _seeds.drawn.add(sequence.entropy)  # of a process that forks, too
    return True


def _forget_half_a_pair(state: Any) -> None:
    """Normal numbers are drawn in pairs: the second of one that was drawn before the fork is in all copies."""
    known = state.get_state(legacy=False)
    if known.get("has_gauss"):
        state.set_state({**known, "has_gauss": 0, "gauss": 0.0})


def forget_temporary_folder() -> None:
    """Have `tempfile` look for its folder again, where what this was forked from has asked for it under other variables."""
    known: Any = sys.modules.get("tempfile")
    if known is not None:
        known.tempdir = None
