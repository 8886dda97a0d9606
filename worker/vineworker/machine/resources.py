"""What a worker may use of the machine it runs on.

A worker that claims more than it may use is worse than a small one: its tasks are throttled, or
killed together with it. A machine, a batch system and a container each set limits of their own; the
lowest counts:

cores
    of this process: its CPU affinity (which is also what a cpuset leaves), and the quota of every
    cgroup on the way from this process up to the root, rounded down.
memory
    of the machine, and the limit of every cgroup on that way.
disk
    half of what is free now where the workspace is: others use the same file system.
gpus
    what ``nvidia-smi -L`` lists and ``CUDA_VISIBLE_DEVICES`` leaves visible.

What is said explicitly counts, even if it is more than was found: sometimes people know better. The
same goes, as a default, for the environment variables ``CORES``, ``MEMORY``, ``DISK`` and ``GPUS``,
which batch scripts set. As with TaskVine's worker, 0 cores, memory or disk mean what was found, and
0 gpus none. Everything that a person may wonder about is said in the notes.

Files are read below an injectable root, so that the machines of the tests are made of files.

References
----------
cgroups(7), proc_pid_mountinfo(5); Linux kernel, Documentation/admin-guide/cgroup-v2.rst and
Documentation/scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from vinecore.protocol import MB
from vinecore.protocol.amounts import MAX_MEGABYTES, parse_megabytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DISK_FRACTION = 0.5
NVIDIA_SMI_TIMEOUT_S = 10.0

# A limit above this is how cgroup v1 writes "no limit": the largest number of bytes in whole pages.
_UNLIMITED = 1 << 60


class DetectedResources(NamedTuple):
    """What a worker offers, and what to say about it."""

    cores: int
    memory_mb: int
    disk_mb: int
    gpus: int
    notes: list[str]


class Cgroup(NamedTuple):
    """The folders of the cgroups of this process, from its own up to the highest visible one."""

    version: int
    controller: str
    folders: list[str]


def detect_resources(
    workspace: str,
    cores: int | None = None,
    memory_mb: int | None = None,
    disk_mb: int | None = None,
    gpus: int | None = None,
    *,
    root: str = "/",
    environ: Mapping[str, str] | None = None,
) -> DetectedResources:
    """Return the resources that a worker may use.

    Takes about a millisecond, and the time of ``nvidia-smi`` if that is installed.

    Parameters
    ----------
    workspace : str
        The folder of the worker; need not exist yet.
    cores, memory_mb, disk_mb, gpus : int or None
        Amounts that the user has set. None or negative, and 0 except for gpus: detect them.
    root : str
        Folder with ``proc`` and ``sys``.
    environ : mapping or None
        The environment; None: that of this process.
    """
    env = os.environ if environ is None else environ
    notes: list[str] = []
    cgroups = find_cgroups(root)
    return DetectedResources(
        _choose_amount("cores", "CORES", cores, env, notes, lambda: available_cores(cgroups, notes)),
        _choose_amount(
            "MB memory", "MEMORY", memory_mb, env, notes, lambda: available_memory_mb(cgroups, root, notes)
        ),
        _choose_amount("MB disk", "DISK", disk_mb, env, notes, lambda: available_disk_mb(workspace, notes)),
        _choose_amount("gpus", "GPUS", gpus, env, notes, lambda: available_gpus(env, notes)),
        notes,
    )


def _choose_amount(
    what: str,
    variable: str,
    said: int | None,
    env: Mapping[str, str],
    notes: list[str],
    find: Callable[[], int],
) -> int:
    by = "asked for"
    if said is None:
        said, by = _read_variable(variable, env, notes), "set by " + variable
    if said == 0 and variable == "GPUS":
        # no comparison: it saves the second that nvidia-smi takes on a machine with gpus
        return 0
    if said is None or said <= 0:
        return find()
    found = find()
    if said > found:
        notes.append(f"{said} {what} are {by}, but only {found} were found here; {said} are offered.")
    return said


def _read_variable(variable: str, env: Mapping[str, str], notes: list[str]) -> int | None:
    text = env.get(variable, "").strip()
    if not text or text.lower() in ("all", "auto"):
        return None
    try:
        if variable in ("MEMORY", "DISK") and text[0] != "-":
            return parse_megabytes(text)
        number = float(text)
        if number.is_integer() and number <= MAX_MEGABYTES:
            return int(number)
    except (ValueError, OverflowError):
        pass
    allowed = ("an amount, such as 2000 or 2GB") if variable in ("MEMORY", "DISK") else "a whole number"
    notes.append(f"{variable}={text!r} in the environment is not {allowed}, and was ignored.")
    return None


def available_cores(cgroups: list[Cgroup], notes: list[str]) -> int:
    """Return the number of cores that this process may use, at least 1."""
    cores = os.cpu_count() or 1
    affinity = _count_affinity_cores()
    if affinity is not None and affinity < cores:
        notes.append(f"{affinity} of {cores} cores are allowed by the CPU affinity of this process.")
        cores = affinity
    quota, folder = _find_lowest_limit(cgroups, "cpu", _cpu_quota)
    if quota is not None and quota < cores:
        cores = max(1, int(quota))
        notes.append(f"{quota:g} cores are allowed by the cgroup {folder}; {cores} offered.")
    return cores


def _count_affinity_cores() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS
        return None


def available_memory_mb(cgroups: list[Cgroup], root: str, notes: list[str]) -> int:
    """Return the memory that this process may use, in MB; 0 if it cannot be determined."""
    total = _total_memory(root)
    limit, folder = _find_lowest_limit(cgroups, "memory", _memory_limit)
    if limit is not None and (total is None or limit < total):
        notes.append(f"{int(limit) // MB} MB memory are allowed by the cgroup {folder}.")
        return int(limit) // MB
    if total is None:
        notes.append("How much memory there is could not be found out: say so with --memory.")
    return (total or 0) // MB


def _total_memory(root: str) -> int | None:
    for line in _read_text(os.path.join(root, "proc/meminfo")).splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def available_disk_mb(workspace: str, notes: list[str]) -> int:
    """Return the disk space that a worker may use, in MB.

    This is a part of the free space on the file system of its workspace.
    """
    folder = os.path.abspath(workspace)
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    try:
        return int(shutil.disk_usage(folder).free * DISK_FRACTION) // MB
    except OSError as error:
        notes.append(f"How much disk is free in {folder} could not be found out: {error}.")
        return 0


def available_gpus(env: Mapping[str, str], notes: list[str]) -> int:
    """Return the number of NVIDIA gpus that this process may use."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi", path=env.get("PATH"))
    if program is None or (visible is not None and not _parse_visible_gpus(visible)):
        return 0
    try:
        output = subprocess.run(
            [program, "-L"],
            capture_output=True,
            timeout=NVIDIA_SMI_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        notes.append(f"Gpus are not offered, because nvidia-smi failed: {error}.")
        return 0
    physical = [line for line in output.splitlines() if line.startswith("GPU ")]
    return len(physical) if visible is None else _count_visible_gpus(visible, len(physical))


def _parse_visible_gpus(visible: str) -> list[str]:
    """Return the devices named before the first invalid one, where the CUDA runtime stops, too."""
    devices: list[str] = []
    for device in visible.split(","):
        name = device.strip()
        if not name or name.startswith("-") or name == "NoDevFiles":
            break
        devices.append(name)
    return devices


def _count_visible_gpus(visible: str, physical: int) -> int:
    count = 0
    for device in dict.fromkeys(_parse_visible_gpus(visible)):
        if device.isdigit() and int(device) >= physical:
            break
        count += 1
    return count


def find_cgroups(root: str = "/") -> list[Cgroup]:
    """Return the cgroups of this process that can limit its cores and memory."""
    mounts = _cgroup_mounts(root)
    found = []
    for line in _read_text(os.path.join(root, "proc/self/cgroup")).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(",") if controllers else [""]:
            if controller in ("", "cpu", "memory") and controller in mounts:
                folders = _list_cgroup_folders(root, *mounts[controller], path)
                found.append(Cgroup(1 if controller else 2, controller, folders))
    return found


def _cgroup_mounts(root: str) -> dict[str, tuple[str, str]]:
    """Return the mount point of each controller, and the cgroup that is visible there.

    The controller of version 2 is "".
    """
    mounts: dict[str, tuple[str, str]] = {}
    for line in _read_text(os.path.join(root, "proc/self/mountinfo")).splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.partition(" ")
        columns = fields.split()
        if kind not in ("cgroup", "cgroup2") or len(columns) < 5:
            continue
        names = [""] if kind == "cgroup2" else options.split()[-1].split(",")
        for name in names:
            mounts.setdefault(name, (_unescape_path(columns[3]), _unescape_path(columns[4])))
    return mounts


def _unescape_path(path: str) -> str:
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


def _list_cgroup_folders(root: str, seen: str, mount: str, path: str) -> list[str]:
    """Return the folders from the cgroup `path` up to the mount point.

    In a container the mount may show only a part of the hierarchy (`seen`), while the path of the
    process may still be given from the very top, or point out of what is visible; then the mount
    point itself is our cgroup.
    """
    base = os.path.join(root, mount.lstrip("/"))
    if seen not in ("/", "") and (path == seen or path.startswith(seen + "/")):
        path = path[len(seen) :]
    parts = [part for part in path.split("/") if part]
    if ".." in parts or not os.path.isdir(os.path.join(base, *parts)):
        parts = []
    return [os.path.join(base, *parts[:depth]) for depth in range(len(parts), -1, -1)]


def _find_lowest_limit(
    cgroups: list[Cgroup], controller: str, limit: Callable[[int, str], float | None]
) -> tuple[float | None, str]:
    """Return the lowest limit of all cgroups above this process, and the folder that sets it."""
    lowest, where = None, ""
    for cgroup in cgroups:
        if cgroup.controller not in ("", controller):
            continue
        for folder in cgroup.folders:
            value = limit(cgroup.version, folder)
            if value is not None and (lowest is None or value < lowest):
                lowest, where = value, folder
    return lowest, where


def _cpu_quota(version: int, folder: str) -> float | None:
    if version == 2:
        quota, _, period = _read_text(os.path.join(folder, "cpu.max")).strip().partition(" ")
    else:
        quota = _read_text(os.path.join(folder, "cpu.cfs_quota_us")).strip()
        period = _read_text(os.path.join(folder, "cpu.cfs_period_us")).strip()
    try:
        used, of = int(quota), int(period or 100_000)
    except ValueError:
        # no such file, or "max"
        return None
    return used / of if used > 0 and of > 0 else None


def _memory_limit(version: int, folder: str) -> float | None:
    # A process above memory.high is throttled until it hardly moves: for planning that is a limit
    # as well.
    names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    limits = []
    for name in names:
        text = _read_text(os.path.join(folder, name)).strip()
        if text.isdigit() and int(text) < _UNLIMITED:
            limits.append(int(text))
    return min(limits) if limits else None


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
