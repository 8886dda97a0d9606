"""The registry: a folder of the user with one file for each manager that has a name, so that workers of the same user find it.

That may be on another machine, if the home is a common one. A manager writes its file anew every minute, and removes it when it is closed. The file of one that could
not is recognized: on its own machine because its process is gone, elsewhere because it is old. See `records` for what is in a file.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

from vinecore.protocol.discovery.manager_record import MAX_RECORD_BYTES

STALE_S = 900.0
"""A manager of another machine that has not written for so long is gone; clocks of machines may differ by some minutes."""
EXPIRE_S = 7 * 86400.0
"""What is older is removed by whoever sees it."""
MAX_TIME = 1 << 40
MAX_FILES = 1000
SUFFIX = ".json"


def registry_directory(given: str = "") -> str:
    """Where the registry is: as given, or as the variable VINE_REGISTRY says, or among what programs keep for this user."""
    folder = given or os.environ.get("VINE_REGISTRY", "")
    if folder:
        return os.path.abspath(os.path.expanduser(folder))
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "daskvine", "managers")


def write(folder: str, key: str, record: Mapping[str, Any]) -> None:
    """Enter a manager of this process, or what is new of it.

    Raises
    ------
    OSError
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    about = {**record, "pid": os.getpid(), "process_started": _process_start_ticks(os.getpid()), "machine": _boot_id(), "lastheardfrom": int(time.time())}  # fmt: skip
    temporary = os.path.join(folder, f".{key}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(about, file, indent=1)
        os.replace(temporary, os.path.join(folder, key + SUFFIX))
    except BaseException:
        os.unlink(temporary)
        raise


def remove(folder: str, key: str) -> None:
    """Take a manager out, if it is there."""
    try:
        os.unlink(os.path.join(folder, key + SUFFIX))
    except OSError:
        pass


def read(folder: str) -> list[dict[str, Any]]:
    """Give the records of all managers that seem to be there; remove those of which it is sure that they are not.

    Raises
    ------
    OSError
        The folder cannot be read, and not because it is not there.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX) and name[0] != ".")
    except FileNotFoundError:
        return []
    found = []
    for name in names[:MAX_FILES]:
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as file:
                text = file.read(MAX_RECORD_BYTES + 1)
            about = json.loads(text) if len(text) <= MAX_RECORD_BYTES else None
        except (OSError, ValueError, RecursionError):
            continue  # removed meanwhile, or not one of ours
        if isinstance(about, dict) and _is_alive(about, path):
            found.append(about)
    return found


def _is_alive(about: dict[str, Any], path: str) -> bool:
    heard, pid, machine = about.get("lastheardfrom"), about.get("pid"), _boot_id()
    if type(heard) is not int or type(pid) is not int or not 0 <= heard < MAX_TIME:
        return False
    age = time.time() - heard
    if machine and about.get("machine") == machine:
        there = about.get("process_started") == _process_start_ticks(pid) != 0
        gone = not there
    else:
        there, gone = age < STALE_S, age > EXPIRE_S
    if gone:
        try:
            os.unlink(path)
        except OSError:
            pass
    return there


def _process_start_ticks(pid: int) -> int:
    """When a process of this machine has started, in ticks since the machine has; 0 if there is none, or nobody knows."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _boot_id() -> str:
    """Identify this machine since its start, and its process id namespace; "" if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
