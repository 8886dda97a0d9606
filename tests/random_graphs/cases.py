"""Random cases: what is in a graph, how it is computed, and what is edited before it is computed again. Decisions only."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tests.random_graphs.kinds import EDITS, GRAPHS, KINDS, Kind

FORMS = ("tuples", "tasks", "delayed", "bag", "array")
WEIGHTS = (3, 3, 3, 1, 1)
MOST_VERTICES = 12
MOST_EDITS = 3
FILES = 3


@dataclass(frozen=True)
class Ref:
    """An argument that is the result of a vertex."""

    name: str


@dataclass(frozen=True)
class Vertex:
    """One call.

    Attributes
    ----------
    arguments : tuple
        Numbers, texts, `Ref`s, and lists and dicts of them; after those that its kind asks for.
    parameter : int
        What a function object of this vertex is made with, the number of a file, the arguments of an error.
    """

    name: str
    kind: Kind
    arguments: tuple[Any, ...]
    parameter: int


@dataclass(frozen=True)
class Case:
    """A graph, computed again and again with edits in between.

    Attributes
    ----------
    form : str
        One of `FORMS`.
    late : bool
        Whether its modules are in a folder that is on the path only since the vine runs.
    vertices : tuple of Vertex
        In an order in which each follows those that it reads. A bag and an array have one for each step that all elements take.
    outputs : tuple of str
        What is asked for.
    edits : tuple of str
        One for each time that it is computed again.
    """

    seed: int
    form: str
    task_mode: str
    reuse: bool
    late: bool
    vertices: tuple[Vertex, ...]
    outputs: tuple[str, ...]
    edits: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.form}, {self.task_mode}, reuse={self.reuse}, late={self.late}, then {self.edits}"
        ]
        lines += [
            f"  {v.name} = {v.kind.name}({', '.join(map(str, v.arguments))}) with {v.parameter}"
            for v in self.vertices
        ]
        return "\n".join([*lines, f"  asked for: {', '.join(self.outputs)}"])


def make_case(seed: int, without: frozenset[str] = frozenset(), reuse: bool | None = None) -> Case:
    """Make the case of a seed.

    Parameters
    ----------
    seed
        The same gives the same.
    without
        Kinds and edits that it shall not have; "late" for modules in a folder that is on the path later.
    reuse
        Whether results are reused; None to leave it to chance.
    """
    chance = random.Random(seed)
    form = chance.choices(FORMS, WEIGHTS)[0]
    task_mode = chance.choice(("function-calls", "tasks"))
    by_chance = chance.random() < 0.5
    late = chance.random() < 0.3 and "late" not in without
    fitting = [k for k in KINDS.values() if k.name not in without and (form in k.only or not k.only)]
    theme = chance.choices(fitting, [kind.weight for kind in fitting], k=chance.randint(2, 5))
    vertices = _chain(chance, theme) if form not in GRAPHS else _graph(chance, theme)
    edits = _edits(chance, vertices, without)
    return Case(
        seed,
        form,
        task_mode,
        by_chance if reuse is None else reuse,
        late,
        vertices,
        _outputs(chance, form, vertices),
        edits,
    )


def _chain(chance: random.Random, theme: list[Kind]) -> tuple[Vertex, ...]:
    """Make steps that elements take; the last may be one that makes something else each time."""
    *first, last = theme[:3]
    kinds = [*(kind for kind in first if not kind.trait), last]
    return tuple(Vertex(f"v{place}", kind, (), chance.randint(1, FILES)) for place, kind in enumerate(kinds))


def _graph(chance: random.Random, theme: list[Kind]) -> tuple[Vertex, ...]:
    vertices: list[Vertex] = []
    raising = False
    for place in range(chance.randint(2, MOST_VERTICES)):
        kind = chance.choice(theme)
        if kind.trait == "raises" and raising:
            kind = KINDS["code"]  # one of two errors would be the first by chance
        raising |= kind.trait == "raises"
        vertices.append(
            Vertex(f"v{place}", kind, _arguments(chance, kind, vertices), chance.randint(1, FILES))
        )
    return _with_sole_readers(vertices)


def _arguments(chance: random.Random, kind: Kind, before: list[Vertex]) -> tuple[Any, ...]:
    if kind.name == "remembered":
        numbers = [Ref(v.name) for v in before if v.kind.gives == "number"]
        return (chance.choice([*numbers, 3]),)
    if kind.name == "changes":  # what it may change is its own: see `_with_sole_readers`
        return (Ref(chance.choice(before).name) if before else 1,)
    if kind.name in ("aliases", "same"):
        return ("twice",) if chance.random() < 0.5 else ("equal",)
    return tuple(_argument(chance, before, 2) for _ in range(chance.randrange(4)))


def _argument(chance: random.Random, before: list[Vertex], depth: int) -> Any:
    dice = chance.random()
    if before and dice < 0.6:
        return Ref(chance.choice(before[-5:]).name)
    if depth and dice < 0.75:
        return [_argument(chance, before, depth - 1) for _ in range(chance.randint(1, 3))]
    if depth and dice < 0.8:
        return {f"k{n}": _argument(chance, before, depth - 1) for n in range(chance.randint(1, 2))}
    return chance.choice((chance.randrange(100), "word", 1.5, None, True)) if dice < 0.95 else ""


def _with_sole_readers(vertices: list[Vertex]) -> tuple[Vertex, ...]:
    """Give what a vertex changes to no other: with dask's scheduler the other would see that, or not."""
    readers: dict[str, int] = {}
    for vertex in vertices:
        for name in references(vertex.arguments):
            readers[name] = readers.get(name, 0) + 1
    return tuple(
        Vertex(v.name, v.kind, (7,), v.parameter)
        if v.kind.name == "changes" and any(readers[name] > 1 for name in references(v.arguments))
        else v
        for v in vertices
    )


def references(arguments: Any) -> list[str]:
    """The vertices whose results are somewhere in arguments."""
    if isinstance(arguments, Ref):
        return [arguments.name]
    if isinstance(arguments, dict):
        arguments = tuple(arguments.values())
    if isinstance(arguments, (list, tuple)):
        return [name for part in arguments for name in references(part)]
    return []


def _outputs(chance: random.Random, form: str, vertices: tuple[Vertex, ...]) -> tuple[str, ...]:
    if form not in GRAPHS:
        return (vertices[-1].name,)
    changed = {name for v in vertices if v.kind.name == "changes" for name in references(v.arguments)}
    read = {name for v in vertices for name in references(v.arguments)}
    names = [v.name for v in vertices if v.name not in changed]
    ends = [name for name in names if name not in read]
    return tuple(dict.fromkeys([*ends, *chance.sample(names, chance.randrange(min(3, len(names))))]))


def _edits(chance: random.Random, vertices: tuple[Vertex, ...], without: frozenset[str]) -> tuple[str, ...]:
    fitting = [edit for v in vertices for edit in v.kind.edits if edit not in without] or ["nothing"]
    others = [edit for edit in EDITS if edit not in without]
    return tuple(
        chance.choice(fitting if chance.random() < 0.7 else others)
        for _ in range(chance.randrange(MOST_EDITS + 1))
    )
