"""The exceptions of the engine, and the texts about failed tasks."""

from __future__ import annotations

from typing import Any

from vinecore.protocol.serialization import exceptions
from vinecore.protocol.serialization.exceptions import add_note as add_note  # noqa: PLC0414 - re-exported


class VineError(Exception):
    """Base of the engine's own errors."""


class RemoteError(VineError):
    """A task raised an exception whose class cannot be loaded here; a class with its name, made from this one, stands in for it."""


class TaskFailed(VineError):
    """A task could not be run to its end, for a reason other than an exception of its own."""


class TaskCrashed(TaskFailed):
    """The processes or workers that ran a task kept dying; the message has the evidence."""


class PythonTaskNoResult(TaskFailed):
    """The output of a Python task without one; its text and its cause say why there is none."""


class FunctionCallNoResult(PythonTaskNoResult):
    """The output of a function call without one."""


class LibraryError(VineError):
    """A library of functions could not be started."""


class WorkersNotStarted(VineError):
    """No worker runs, and none of those that this program has tried to start came up."""


class InsufficientResources(VineError):
    """No worker is large enough for a task, or its disk is too small."""


BY_ITSELF = (
    "No exception was raised: something there ended the process itself (os._exit, a crash in C code, too little memory; or a lib_command that does not run the command line that it is given). "
    "Do the same in a Python of your own on that machine to see it; have it raise an exception instead of ending the process"
)


def load_exception(payload: bytes) -> BaseException:
    """Rebuild the exception that a slot has serialized."""
    try:
        return exceptions.load_exception(payload, RemoteError)
    except Exception as problem:  # noqa: BLE001 - it came from another process
        return RemoteError(
            f"a task raised an exception that cannot be loaded here: {type(problem).__name__}: {problem}"
        )


def exception_for(kind: str, info: dict[str, Any], payload: bytes, what: str, where: str) -> BaseException:
    """Make the exception that tells why a task has failed.

    Parameters
    ----------
    kind, info, payload
        The outcome of the task, its evidence, and the serialized exception; see `StatusMethods.make_exception`.
    what
        The task, in the user's words.
    where
        The worker, or "".
    """
    attempt = info.get("attempt")
    place = f"{what} failed{f' on {where}' if where else ''}{f', attempt {attempt}' if attempt else ''}"
    if kind == "exception" or (kind == "library" and payload):
        error = load_exception(payload)
        if kind == "library":
            if isinstance(error, ImportError):
                add_note(
                    error,
                    "a worker could not import this for the library: install it there, ship environment='my-env.tar.gz', or take it out of import_modules",
                )
            add_note(error, f"library {info.get('library', '')} could not be started")
        else:
            if isinstance(error, ImportError):
                add_note(
                    error,
                    "a worker could not import this: install it there, or ship environment='my-env.tar.gz'",
                )
            add_note(error, place)
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
        text = f"library {info.get('library', '')} could not be started: {reason}"
        ended = "the library's process " in reason
        return LibraryError(f"{text}\n{BY_ITSELF}" if ended else text)
    if kind in ("too large", "no workers"):
        return (InsufficientResources if kind == "too large" else WorkersNotStarted)(reason)
    if kind == "disk":
        text = f"{place}: {reason}: start workers with more disk (--disk), or more workers"
        return InsufficientResources(text)
    if kind == "time":
        return TaskFailed(f"{place}: {reason}: give it more with set_time_max, or None for no limit")
    if kind == "exhausted":
        if info.get("library"):
            return TaskFailed(
                f"{place}: its library used {info.get('peak')} MB of {info.get('resource')}, its limit is {info.get('limit')} MB, and the slot "
                "of this call had written most: give the library more with set_disk, or lib_resources={'disk': ...}, or have calls remove their temporary files"
            )
        text = f"{place}: it used {info.get('peak')} MB of {info.get('resource')}, its limit is {info.get('limit')} MB: "
        return TaskFailed(
            text
            + f"ask for more with resources={{'{info.get('resource')}': ...}}, or let resources_mode='max' find out"
        )
    return TaskFailed(f"{place}: {kind}{f': {reason}' if reason else ''}")
