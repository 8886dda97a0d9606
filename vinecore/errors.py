"""What can go wrong, as a user of the engine sees it."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

from vinecore.protocol import values


class VineError(Exception):
    """Base of the engine's own errors."""


class RemoteError(VineError):
    """A task raised an exception that could not be brought here as itself; its text and traceback are in the message."""


class TaskFailed(VineError):
    """A task could not be run to its end, for a reason other than an exception of its own."""


class TaskCrashed(TaskFailed):
    """The processes or workers that ran a task kept dying; the message has the evidence."""


class LibraryError(VineError):
    """A library of functions could not be started."""


class InsufficientResources(VineError):
    """No worker, of all that there will be, is large enough."""


def note(error: BaseException, text: str) -> None:
    """Add a line to what is shown with an exception."""
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:  # Python 3.10 shows no notes, but keeps them for who looks
        error.__notes__ = [*getattr(error, "__notes__", []), text]


def unpack(payload: bytes) -> BaseException:
    """Rebuild the exception that a slot has pickled."""
    try:
        if payload.startswith(values.MAGIC):
            error, kind, text, formatted = values.loads(payload)
        else:
            error, kind, text, formatted = pickle.loads(payload)
    except Exception as problem:  # noqa: BLE001 - whatever its class does when it is rebuilt
        return RemoteError(
            f"a task raised an exception that cannot be loaded here: {type(problem).__name__}: {problem}"
        )
    if isinstance(error, BaseException):
        _complete(error, set())
        return error
    return RemoteError(f"{kind}: {text}\n\n{formatted}")


def _complete(error: BaseException, seen: set[int]) -> None:
    """Set what the constructors of some builtin exceptions set besides ``args``, such as the code of SystemExit; tblib leaves that out."""
    seen.add(id(error))
    kind = type(error)
    maker = next(base for base in kind.__mro__ if "__init__" in vars(base))
    if (
        maker.__module__ == "builtins"
        and kind.__reduce__ is BaseException.__reduce__
        and maker is not BaseException
    ):
        with contextlib.suppress(TypeError):
            maker.__init__(error, *error.args)  # type: ignore[misc]
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        if isinstance(other, BaseException) and id(other) not in seen:
            _complete(other, seen)


def explain(kind: str, info: dict[str, Any], payload: bytes, what: str, where: str) -> BaseException:
    """Make the exception that tells why a task has failed.

    Parameters
    ----------
    kind, info, payload
        What the mind says of it.
    what
        The task, in the user's words.
    where
        The worker, or "".
    """
    attempt = info.get("attempt")
    place = f"{what} failed{f' on {where}' if where else ''}{f', attempt {attempt}' if attempt else ''}"
    if kind == "exception" or (kind == "library" and payload):
        error = unpack(payload)
        if kind == "library":
            if isinstance(error, ImportError):
                note(
                    error,
                    "a worker could not import this for the library: install it there, ship environment='my-env.tar.gz', or take it out of import_modules",
                )
            note(error, f"library {info.get('library', '')} could not be started")
        else:
            if isinstance(error, ImportError):
                note(
                    error,
                    "a worker could not import this: install it there, or ship environment='my-env.tar.gz'",
                )
            note(error, place)
        return error
    reason = info.get("reason", "")
    if kind == "crash":
        evidence = "\n  ".join(info.get("evidence") or [reason])
        attempts = info.get("attempts", 1)
        how_often = "once, and" if attempts == 1 else f"{attempts} times, and each time"
        text = f"{place}: it was tried {how_often} its process or worker was lost:\n  {evidence}"
        log = info.get("log")
        return TaskCrashed(text + (f"\nlast lines of its log:\n{log}" if log else ""))
    if kind == "library":
        return LibraryError(f"library {info.get('library', '')} could not be started: {reason}")
    if kind == "too large":
        return InsufficientResources(reason)
    if kind == "disk":
        text = f"{place}: {reason}: start workers with more disk (--disk), or more workers"
        return InsufficientResources(text)
    if kind == "exhausted":
        text = f"{place}: it used {info.get('peak')} MB of {info.get('resource')}, its limit is {info.get('limit')} MB: "
        return TaskFailed(
            text
            + f"ask for more with resources={{'{info.get('resource')}': ...}}, or let resources_mode='max' find out"
        )
    return TaskFailed(f"{place}: {kind}{f': {reason}' if reason else ''}")
