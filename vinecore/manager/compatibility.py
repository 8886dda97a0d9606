"""Compare versions that decide whether pickles pass between the manager and a worker.

Most differences between two environments do no harm. These do:

Python, major and minor
    cloudpickle sends functions as bytecode, and that belongs to one minor version.
cloudpickle, major
    its pickles call functions of its own; without it on the worker nothing can be loaded at all.
dask, year and month
    vertices are objects of its private classes, which change from one release to the next.
numpy, pandas, awkward, major
    their objects refer to private modules, which major versions have moved.

A package that only one side has is left alone: a task that needs it says so itself.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# How many leading parts of the version have to be the same.
PICKLE_SENSITIVE_PACKAGES = {"cloudpickle": 1, "dask": 2, "numpy": 1, "pandas": 1, "awkward": 1}

# Without these on its side a worker can load nothing.
REQUIRED_PACKAGES = ("cloudpickle",)


def python_version() -> str:
    """Return the version of this Python as far as it matters for pickles: ``3.11``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def package_versions(names: Iterable[str] = tuple(PICKLE_SENSITIVE_PACKAGES)) -> dict[str, str]:
    """Return the versions of installed packages; packages that are not installed are left out."""
    found = {}
    for name in names:
        try:
            version = metadata.version(name)
        except (metadata.PackageNotFoundError, ValueError, OSError):
            continue
        # An installation that was interrupted leaves metadata without a version.
        if version:
            found[name] = version
    return found


def describe() -> dict[str, Any]:
    """Describe this process for `explain_mismatch`."""
    return {"python": python_version(), "packages": package_versions()}


def explain_mismatch(manager: Mapping[str, Any], worker: Mapping[str, Any], where: str) -> str | None:
    """Explain which versions keep pickles from passing between a manager and a worker.

    Parameters
    ----------
    manager, worker : mapping
        ``{"python": "3.11", "packages": {"cloudpickle": "3.1.2", ...}}``; what is absent is not compared.
    where : str
        Which worker, for the text: ``worker w1 on host h``.

    Returns
    -------
    str or None
        One text that names the difference, the consequence and the fix; None if they fit.
    """
    ours, theirs = str(manager.get("python") or ""), str(worker.get("python") or "")
    if ours and theirs and _numeric_prefix(ours, 2) != _numeric_prefix(theirs, 2):
        return (
            f"{where} runs Python {theirs} but the manager runs {ours}: functions pickled by one cannot be "
            f"loaded by the other. Start the worker with Python {_short(ours)}, or ship an environment with "
            "environment='my-env.tar.gz'."
        )
    differences = _differences(manager.get("packages") or {}, worker.get("packages"))
    if not differences:
        return None
    has, install = zip(*differences, strict=True)
    return (
        f"{where} has {_join(has)}: objects pickled by one may not load on the other. "
        f"Install {_join(install)} for the worker, or ship an environment with environment='my-env.tar.gz'."
    )


def _differences(ours: Mapping[str, str], theirs: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """For each package that matters: what is different, and what to install."""
    found: list[tuple[str, str]] = []
    if theirs is None:
        return found
    for name, depth in PICKLE_SENSITIVE_PACKAGES.items():
        mine, other = ours.get(name), theirs.get(name)
        if mine is None:
            continue
        if other is None:
            if name in REQUIRED_PACKAGES:
                found.append((f"no {name} but the manager has {mine}", f"{name}=={mine}"))
        elif _numeric_prefix(mine, depth) != _numeric_prefix(other, depth):
            found.append((f"{name} {other} but the manager has {mine}", f"{name}=={mine}"))
    return found


def _numeric_prefix(version: str, depth: int) -> tuple[str, ...]:
    """Return the first `depth` numbers of a version: ``2.0rc1`` as 2.0, ``2025.03`` as 2025.3."""
    return tuple(str(int(number)) for number in re.findall(r"\d+", version)[:depth])


def _short(version: str) -> str:
    return ".".join(_numeric_prefix(version, 2))


def _join(texts: Iterable[str]) -> str:
    *head, last = texts
    return f"{', '.join(head)} and {last}" if head else last
