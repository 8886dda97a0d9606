"""Give each forked process random numbers of its own.

Two processes that were forked from one would draw the same numbers. Python reseeds its own `random`
in each child. The generators of NumPy, the `random.Random` objects and the generators of PyTorch
that exist when a process forks are reseeded here, unless the user has chosen their seed:
``default_rng(42)`` has to give what it always gives. The rules:

- `vinecore.protocol.serialization.random_seeds` records the seeds of NumPy and `random.Random`.
  After ``numpy.random.seed(n)`` and ``RandomState(n)`` there is no seed that was drawn.
- PyTorch seeds a generator without a chosen seed with one fixed number, and its default one with 64
  random bits.

The generators are found once, before `gc.freeze` hides them from the garbage collector. So a fork
costs some microseconds for each, and nothing if there is none.
"""

from __future__ import annotations

import gc
import pickle
import random
import sys
from typing import Any

from vinecore.protocol.serialization import random_seeds

MAX_CHOSEN_TORCH_SEED = 1 << 32
"""A larger seed of PyTorch's default generator was not chosen by the user."""
SEEDED_POSITIONS = (623, 624)
"""Positions of NumPy's shared generator when it has been seeded, by the system or with a number."""
BATCH_SIZE = 10_000


# by identity: what may have to be renewed after a fork
_generators: dict[int, Any] = {}
_known_types: dict[type, bool] = {}


def find_generators() -> None:
    """Find all random number generators that the garbage collector knows, before `gc.freeze`."""
    # a class that was judged before NumPy was there
    _known_types.clear()
    known = gc.get_objects()
    shared = random_seeds.global_random()  # which Python reseeds
    for one in known:
        if _is_generator(type(one)) and one is not shared:
            _generators[id(one)] = one
    torch: Any = sys.modules.get("torch")
    # its generators are not known to the collector, but to those that refer to them
    if torch is not None:
        for start in range(0, len(known), BATCH_SIZE):
            for one in gc.get_referents(*known[start : start + BATCH_SIZE]):
                if type(one) is torch.Generator:
                    _generators[id(one)] = one


def _is_generator(kind: type) -> bool:
    verdict = _known_types.get(kind)
    if verdict is None:
        kinds: list[type] = [random.Random]
        for module, names in (
            ("numpy.random.bit_generator", ("BitGenerator", "SeedSequence")),
            ("numpy.random.mtrand", ("RandomState",)),
        ):
            if module in sys.modules:
                kinds += [getattr(sys.modules[module], name) for name in names]
        verdict = _known_types[kind] = issubclass(kind, tuple(kinds)) and not issubclass(
            kind, random.SystemRandom
        )
    return verdict


def reseed_generators() -> None:
    """Reseed the generators of this process, which was just forked.

    Python itself has reseeded `random`.
    """
    if "numpy.random.mtrand" in sys.modules:
        _reseed_numpy()
    torch: Any = sys.modules.get("torch")
    for one in _generators.values():
        if isinstance(one, random.Random):
            if not random_seeds.seeds.chosen.get(id(one), False):
                one.seed()
        elif (
            torch is not None
            and type(one) is torch.Generator
            and one.initial_seed() == random_seeds.TORCH_UNSEEDED
        ):
            one.seed()
    if torch is not None and torch.initial_seed() >= MAX_CHOSEN_TORCH_SEED:
        torch.seed()


def _reseed_numpy() -> None:
    bits: Any = sys.modules["numpy.random.bit_generator"]
    legacy: Any = sys.modules["numpy.random.mtrand"]
    renewed = {
        id(one)
        for one in _generators.values()
        if isinstance(one, bits.SeedSequence) and _reseed_sequence(one)
    }
    for one in _generators.values():
        if isinstance(one, bits.BitGenerator) and id(sequence := getattr(one, "_seed_seq", None)) in renewed:
            one.state = type(one)(sequence).state
    if random_seeds.seeds.is_numpy_unseeded:
        getattr(legacy, random_seeds.GLOBAL_NUMPY[1]).seed()
    for one in _generators.values():
        if isinstance(one, legacy.RandomState):
            made = getattr(one, "_bit_generator", None)
            if id(getattr(made, "_seed_seq", None)) in renewed:
                _drop_second_normal(one)


def _reseed_sequence(sequence: Any) -> bool:
    """Draw a new seed for a seed sequence, if the system has drawn its present one.

    Its position for other sequences stays.
    """
    if not random_seeds.seeds.was_drawn(sequence.entropy):
        return False
    sequence.__init__(
        spawn_key=sequence.spawn_key,
        pool_size=sequence.pool_size,
        n_children_spawned=sequence.n_children_spawned,
    )
    # of a process that forks, too
    random_seeds.seeds.add_drawn(sequence.entropy)
    return True


def _drop_second_normal(state: Any) -> None:
    """Drop the second normal number of a pair that was drawn before the fork.

    Normal numbers are drawn in pairs, so all forks would have the same second one.
    """
    known = state.get_state(legacy=False)
    if known.get("has_gauss"):
        state.set_state({**known, "has_gauss": 0, "gauss": 0.0})


def random_states() -> dict[str, Any]:
    """Return the states of the random number generators that a process shares."""
    legacy: Any = sys.modules.get("numpy.random.mtrand")
    torch: Any = sys.modules.get("torch")
    states: dict[str, Any] = {"random": random.getstate()}
    if legacy is not None:
        states["numpy"] = pickle.dumps(legacy.get_state(legacy=False))
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy().tobytes()
    return states


def have_drawn(before: dict[str, Any]) -> bool:
    """Return whether numbers were drawn from a shared generator since these states."""
    now = random_states()
    if "numpy" in now and "numpy" not in before:
        state = pickle.loads(now["numpy"])
        if state.get("has_gauss") or state["state"].get("pos") not in SEEDED_POSITIONS:
            return True
    return any(now[name] != state for name, state in before.items())
