"""Durations, bytes and long texts as people read them."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Return a duration with a unit."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def format_bytes(count: float) -> str:
    """Return a number of bytes with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return (
        f"{count:.0f} B"
        if unit == "B"
        else f"{count:,.3g} {unit}"
        if count < 1000
        else f"{count:,.0f} {unit}"
    )


def shorten_text(text: str, most: int) -> str:
    """Return a text on one line, cut to a number of characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
