"""Small synthetic NanoAOD files, written with uproot: the demo needs data that everybody has.

The files look like NanoAOD to uproot and coffea: a tree ``Events`` of 36 branches, jagged muons, electrons
and jets with a counter branch each, several baskets per branch so that a file can be read in steps. The
content is physical enough for an analysis to find what it looks for (see `daskvine.demo.collisions`), and
the same for the same arguments.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

from daskvine.demo.detector import record

TREE = "Events"
BASKETS = 4
MARKER = "dataset.json"
FORMAT = 1
"""Number of the generator's version; a data set written by another one is not reused."""


def write_dataset(
    folder: str | os.PathLike[str], files: int = 4, events: int = 10_000, seed: int = 1
) -> list[Path]:
    """Write a data set, or return the one that is there already.

    Parameters
    ----------
    folder
        Where; made if it does not exist.
    files
        Number of files.
    events
        Number of events in each file.
    seed
        Each file has its own random stream, derived from this number and the number of the file: the
        first files of a larger data set are those of a smaller one.

    Returns
    -------
    list of Path
        The files, as absolute paths.

    Raises
    ------
    ValueError
        If ``files`` or ``events`` is less than 1.

    Notes
    -----
    A file ``dataset.json`` is written last. If it names the same parameters and all files have their
    recorded size, nothing is written; otherwise the files it names are replaced. A run that was interrupted
    leaves no such file and is repeated.
    """
    if files < 1 or events < 1:
        message = f"a data set needs at least one file and one event, not {files} files of {events} events"
        raise ValueError(message)
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {"format": FORMAT, "files": files, "events": events, "seed": seed}
    paths = [folder / f"nano_{number:04d}.root" for number in range(files)]
    if _complete(folder, parameters, paths):
        return paths
    _discard(folder)
    for number, path in enumerate(paths):
        _write_file(path, number, events, seed)
    _write_marker(folder, parameters, paths)
    return paths


def make_columns(number: int, events: int, seed: int) -> dict[str, Any]:
    """Columns of file ``number`` of a data set: numpy arrays, and awkward arrays for the collections."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, number)))
    return record(rng, events, first_event=number * events + 1)


def _write_file(path: Path, number: int, events: int, seed: int) -> None:
    columns = make_columns(number, events, seed)
    types = {name: _branch_type(column) for name, column in columns.items()}
    edges = np.linspace(0, events, min(BASKETS, events) + 1).astype(int)
    partial = path.with_suffix(f".{os.getpid()}.part")
    # A reader that finds the file under its final name finds all of it.
    with uproot.recreate(partial, compression=uproot.LZ4(1)) as file:
        tree = file.mktree(TREE, types)
        for start, stop in itertools.pairwise(edges):
            tree.extend({name: column[start:stop] for name, column in columns.items()})
    partial.replace(path)


def _branch_type(column: Any) -> Any:
    return column.type.content if isinstance(column, ak.Array) else column.dtype


def _write_marker(folder: Path, parameters: dict[str, int], paths: list[Path]) -> None:
    sizes = {path.name: path.stat().st_size for path in paths}
    partial = folder / f"{MARKER}.{os.getpid()}.part"
    partial.write_text(json.dumps({"parameters": parameters, "sizes": sizes}, indent=1) + "\n")
    partial.replace(folder / MARKER)


def _read_marker(folder: Path) -> dict[str, Any]:
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _complete(folder: Path, parameters: dict[str, int], paths: list[Path]) -> bool:
    marker = _read_marker(folder)
    if marker.get("parameters") != parameters:
        return False
    found = {path.name: path.stat().st_size for path in paths if path.exists()}
    return bool(marker.get("sizes") == found)


def _discard(folder: Path) -> None:
    """Remove the files of an earlier data set, so that ``*.root`` is never a mixture of two."""
    for name in _read_marker(folder).get("sizes", {}):
        if Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
