"""Tracebacks as plain data, and back.

Of each frame travel its file, its place in there, and its name; what the traceback looks like is decided where it is shown, from the sources
that are there: files, cells of a notebook, lines of an interactive interpreter.

A frame can only be made by running something. So for each one an expression is compiled that stands where the frame was, from the first column to
the last, so that what marks the place marks the right one.
"""

from __future__ import annotations

import ast
import functools
import itertools
import sys
from types import CodeType, FrameType, TracebackType
from typing import Any, NamedTuple, Optional

MAX_FRAMES = 1000
"""Of a longer traceback the middle is left out."""
WORKER_MODULES = "vineworker."
"""How the names of the worker's modules begin: it stands between the user's frames, too, where it watches imports and the environment."""
UNKNOWN_NAME = ".unknown"
"""A name that no program can have given to anything."""


class FrameLocation(NamedTuple):
    """Where a frame was.

    ``column`` and ``end_column`` are offsets in bytes, as the compiler counts them; -1 if nobody knows.
    """

    file: str
    name: str
    qualified_name: str
    module: str
    line: int
    end_line: int
    column: int
    end_column: int


def dump_traceback(
    traceback: Optional[TracebackType], *, without: tuple[str, ...] = ()
) -> list[tuple[Any, ...]]:
    """Give the places of a traceback, the outermost first, but for those in the worker's modules.

    Parameters
    ----------
    without
        How the names of modules begin whose frames are left out where the traceback begins with them; not if there are no others.
    """
    frames: list[TracebackType] = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    users = itertools.dropwhile(lambda one: _module_name(one.tb_frame).startswith(without), frames)
    frames = [one for one in users if not _module_name(one.tb_frame).startswith(WORKER_MODULES)] or frames
    if len(frames) > MAX_FRAMES:
        frames[MAX_FRAMES // 2 : -MAX_FRAMES // 2] = []
    return [tuple(_frame_location(one)) for one in frames]


def _module_name(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "?"))


def _frame_location(traceback: TracebackType) -> FrameLocation:
    code, line = traceback.tb_frame.f_code, traceback.tb_lineno or 1
    span = _instruction_span(code, traceback.tb_lasti)
    if None in span or span[0] != line:
        span = line, line, -1, -1
    name = code.co_name
    return FrameLocation(
        code.co_filename, name, getattr(code, "co_qualname", name), _module_name(traceback.tb_frame), *span
    )


def _instruction_span(code: CodeType, instruction: int) -> tuple[Any, ...]:
    """First and last line, first and last column of an instruction, from Python 3.11 on."""
    positions: Any = getattr(code, "co_positions", None)
    if positions is None or instruction < 0:
        return (None,)
    line, end_line, column, end_column = next(
        itertools.islice(positions(), instruction // 2, None), (None,) * 4
    )
    return line, end_line, column, end_column


def load_traceback(places: list[tuple[Any, ...]]) -> Optional[TracebackType]:
    """Make a traceback that leads through these places."""
    traceback = None
    for place in reversed(places):
        frame, instruction = _make_frame(FrameLocation(*place))
        traceback = TracebackType(traceback, frame, instruction, place[4])
    return traceback


@functools.lru_cache(maxsize=64)
def _make_frame(place: FrameLocation) -> tuple[FrameType, int]:
    """Make a frame and the instruction in it that stands there; the same one where a function has called itself."""
    span = {
        "lineno": place.line,
        "end_lineno": place.end_line,
        "col_offset": place.column,
        "end_col_offset": place.end_column,
    }
    body = ast.Expr(ast.Name(UNKNOWN_NAME, ast.Load(), **span), **span)
    code = compile(ast.Module([body], []), place.file, "exec").replace(co_name=place.name)
    if sys.version_info >= (3, 11):
        code = code.replace(co_qualname=place.qualified_name)
    try:
        exec(code, {"__name__": place.module, "__file__": place.file})  # noqa: S102 - a name, nothing else
    except NameError as error:
        inner: Any = error.__traceback__.tb_next  # type: ignore[union-attr]
        return inner.tb_frame, inner.tb_lasti
    raise AssertionError  # there is no such name
