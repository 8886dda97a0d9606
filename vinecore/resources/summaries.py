"""Reads summaries of measured tasks: what the resource monitor of cctools writes for each task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vinecore.resources.amounts import Resources

SECONDS = {"s": 1.0, "us": 1e-6, "ms": 1e-3, "min": 60.0, "h": 3600.0}
MEGABYTES = {"MB": 1.0, "B": 1e-6, "kB": 1e-3, "KB": 1e-3, "GB": 1e3, "TB": 1e6}
CORES = {"cores": 1.0, "gpus": 1.0, "procs": 1.0}


def read_summaries(path: str | Path) -> dict[str, list[tuple[Resources, float]]]:
    """Return what tasks have used, with their durations in seconds, by category.

    Parameters
    ----------
    path : str or Path
        A file of JSON objects, one after another or in a list.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is not JSON, or an object is no summary.
    """
    measured: dict[str, list[tuple[Resources, float]]] = {}
    for summary in _read_objects(path):
        try:
            used = Resources(
                _amount(summary.get("cores"), CORES),
                round(_amount(summary.get("memory"), MEGABYTES)),
                round(_amount(summary.get("disk"), MEGABYTES)),
            )
            wall_s = _amount(summary.get("wall_time"), SECONDS)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            msg = f"{path}: no summary of a task: {str(summary)[:200]}: {error!r}"
            raise ValueError(msg) from None
        measured.setdefault(str(summary.get("category") or "default"), []).append((used, wall_s))
    return measured


def _read_objects(path: str | Path) -> list[Any]:
    text, decoder = Path(path).read_text(encoding="utf-8"), json.JSONDecoder()
    found: list[Any] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError as error:
            msg = f"{path}: not JSON: {error}"
            raise ValueError(msg) from None
        found += value if isinstance(value, list) else [value]
    return found


def _amount(value: Any, units: dict[str, float]) -> float:
    """Return a number, or a number with its unit, in the unit of the engine; 0 if it is not there."""
    if value is None:
        return 0.0
    if isinstance(value, list):
        number, unit = value
        return float(number) * units[unit]
    return float(value)
