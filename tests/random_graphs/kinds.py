"""The kinds of functions that the vertices of random graphs call: what is in `modules/own.py`, and in how many ways it is reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What the generator and the oracle know of a kind.

    Attributes
    ----------
    name : str
        Of the function, mostly.
    edits : tuple of str
        What can be edited that changes its value.
    trait : str
        "" if its value follows from its arguments and from what can be edited; "random", "count" or "time" if it is another
        one each time; "raises", or "writes" a file.
    gives : str
        "number", "array", "list" or "dict".
    only : tuple of str
        The forms of a graph in which it has a meaning; () for all.
    weight : float
        How often it is chosen.
    """

    name: str
    edits: tuple[str, ...] = ()
    trait: str = ""
    gives: str = "number"
    only: tuple[str, ...] = ()
    weight: float = 1.0


GRAPHS = ("tuples", "tasks", "delayed")

KINDS = {
    kind.name: kind
    for kind in (
        Kind("code", ("code",), weight=2),
        Kind("constant", ("constant",)),
        Kind("imported", ("cut",)),
        Kind("attribute", ("limit",)),
        Kind("inside", ("limit",)),
        Kind("by_name", ("limit",)),
        Kind("table", ("table",)),
        Kind("settings", ("shift",)),
        Kind("settings_now", ("step",)),
        Kind("calls_remembered", ("remembered",)),
        Kind("remembered", ("remembered",), only=GRAPHS),
        Kind("partial", ("parameter",)),
        Kind("scaler", ("parameter",)),
        Kind("method", ("parameter",)),
        Kind("closure", ("parameter", "constant")),
        Kind("notebook", ("notebook", "constant")),
        Kind("travels", ("travels",)),
        Kind("environ", ("environ",)),
        Kind("array", gives="array", only=(*GRAPHS, "bag")),
        Kind("large_array", gives="array", only=GRAPHS),
        Kind("nested", gives="dict", only=GRAPHS),
        Kind("text", gives="text", only=GRAPHS),
        Kind("changes_copies", only=GRAPHS),
        Kind("changes", only=GRAPHS),
        Kind("aliases", only=GRAPHS),
        Kind("same", gives="list", only=GRAPHS),
        Kind("prints"),
        Kind("logs"),
        Kind("warns"),
        Kind("forks"),
        Kind("starts_process", weight=0.5),
        Kind("runs_program", weight=0.5),
        Kind("starts_thread", weight=0.5),
        Kind("computes", weight=0.5),
        Kind("file_named", ("file",)),
        Kind("file_as_path", ("file",), only=GRAPHS),
        Kind("file_found", ("file",)),
        Kind("file_relative", ("file",)),
        Kind("file_matching", ("file",)),
        Kind("file_at_address", ("file",)),
        Kind("file_of_user", ("file",)),
        Kind("writes", ("written",), trait="writes", only=GRAPHS),
        Kind("writes_relative", ("written",), trait="writes", only=GRAPHS),
        Kind("writes_found", ("written",), trait="writes", only=GRAPHS),
        Kind("random_number", trait="random"),
        Kind("numpy_number", trait="random"),
        Kind("own_random", trait="random"),
        Kind("own_generator", trait="random"),
        Kind("new_generator", trait="random"),
        Kind("given_generator", trait="random", only=GRAPHS),
        Kind("given_random", trait="random", only=GRAPHS),
        Kind("given_method", trait="random"),
        Kind("held_by_notebook", trait="random"),
        Kind("seeded_generator", only=GRAPHS),
        Kind("unique", trait="random", gives="text", only=GRAPHS),
        Kind("counts", ("code",), trait="count"),
        Kind("tells_time", trait="time", only=GRAPHS),
        Kind("raises", ("raising",), trait="raises", only=GRAPHS),
        Kind("raises_from", ("raising",), trait="raises", only=GRAPHS),
        Kind("raises_during", ("raising",), trait="raises", only=GRAPHS),
        Kind("raises_note", ("raising",), trait="raises", only=GRAPHS),
    )
}

EDITS = tuple(
    sorted({edit for kind in KINDS.values() for edit in kind.edits} | {"nothing", "same file", "comment"})
)
"""What can happen between two runs; "comment" changes the text of the modules and nothing of what they do."""
