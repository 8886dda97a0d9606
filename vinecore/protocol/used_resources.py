"""What a vertex may use beside its arguments, in words that both ends compare: a file, what is in a folder, a variable of the environment.

Each is a text of a kind, a name, and the state in which it was. Two texts that are equal speak of the same thing in the same state. What has no
state that could be compared, such as the answer of a server, is a kind alone.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Optional

SEPARATOR = "\0"
MISSING = "-"
MAX_NAMES = 20_000
"""Names in a folder that are compared; a folder that has more cannot be known."""

RECORDS = "VINE_RECORDS_USAGE"
"""Variable of a library whose processes record what they use from their start."""

RANDOM = "random"
"""The state of a generator that all of a process shares was changed, or entropy, the time, the process or the machine was asked for."""
WRITTEN = "written"
"""Something on a disk was written, moved or removed."""
PROCESS = "process"
"""Another process was started."""
NETWORK = "network"
"""A connection was made."""
UNSEEN = "unseen"
"""A library in another language has read something, and nobody has seen what."""
ENVIRONMENT = "environment"
"""All variables were read, as to start a process or to search them."""

SAME_GRAPH = frozenset({RANDOM, WRITTEN})
"""What does not keep a graph that was interrupted from using what it has made before: it was drawn, or written, for that graph."""


def file_state(path: str) -> str:
    """State of a file by which a change is noticed, or that there is none."""
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return MISSING
    if stat.S_ISDIR(about.st_mode):
        return "folder"
    return f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_ino}"


def is_settled(path: str) -> bool:
    """Whether what is at a path, if anything, has contents that stay: it is no pipe, socket or device."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def describe_file(path: str) -> str:
    """Describe the present state of a file."""
    return SEPARATOR.join(("file", path, file_state(path)))


def describe_listing(path: str) -> Optional[str]:
    """Describe the names in a folder; return None if there are too many."""
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return SEPARATOR.join(("listing", path, MISSING))
    if len(names) > MAX_NAMES:
        return None
    return format_listing(path, names)


def format_listing(path: str, names: list[str]) -> str:
    """Describe a folder by its sorted names."""
    text = "\0".join(names).encode(errors="surrogateescape")
    return SEPARATOR.join(("listing", path, hashlib.blake2b(text, digest_size=10).hexdigest()))


def describe_variable(name: str, value: Optional[str]) -> str:
    """Describe a variable of the environment by a digest of its value."""
    state = MISSING
    if value is not None:
        state = hashlib.blake2b(value.encode(errors="surrogateescape"), digest_size=10).hexdigest()
    return SEPARATOR.join(("variable", name, state))
