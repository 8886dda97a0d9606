"""The names that files have in the folder of a task."""

from __future__ import annotations

import os
import posixpath

from vinecore import validators


def check_sandbox_name(remote_name: str | os.PathLike[str]) -> str:
    """Check the name that a file has in a task's folder: a text, or a relative Path.

    Raises
    ------
    TypeError, ValueError
        It is absolute, or leads out of the folder, or cannot be the name of a file.
    """
    given = os.fspath(remote_name) if isinstance(remote_name, os.PathLike) else remote_name
    name = validators.text("remote_name", given)
    path = posixpath.normpath(name)
    if not name or path == "." or path.startswith(("/", "../")) or path == "..":
        msg = f"{name!r} is not a name inside of a task's folder: use one such as 'data/input.root'"
        raise ValueError(msg)
    return name
