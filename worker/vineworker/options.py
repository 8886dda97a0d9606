"""The options of ``vine_worker``."""

from __future__ import annotations

import argparse
import math
import os
from typing import Any, Optional

from vineworker import __version__

MIN_BACKOFF_S, MAX_BACKOFF_S = 0.2, 5.0
DEFAULT_GRACE_S = 25.0
"""Batch systems kill what has not left 30 s after they have asked it to."""
MAX_COUNT = 1 << 53
TRANSFER_THREADS, MAX_TRANSFER_THREADS = 8, 1000
NO_EFFECT = (
    (("-w", "--tcp-window-size"), "the kernel sets it"),
    (("-A", "--arch"), "no task asks for it: use --feature"),
    (("-O", "--os"), "no task asks for it: use --feature"),
    (("--bandwidth",), "limits are the manager's, on the number of transfers of one source"),
    (("-z", "--disk-threshold"), "a full disk is noticed without it: limit the worker with --disk"),
    (("--memory-threshold",), "limit the worker with --memory"),
    (("--connection-mode",), "all addresses of a manager are tried"),
    (("--tls-sni",), "certificates are known by their fingerprint, not by a name"),
    (("--from-factory",), "a factory here names its workers itself"),
    (("--volatility",), "end workers with signals to test failures"),
)
"""Options of TaskVine's worker with a value, and why they change nothing here."""
NO_EFFECT_FLAGS = (
    (("-a", "--auto"), "-M is enough"),
    (("--disable-symlinks",), "inputs are symbolic links only if a task asks for that"),
    (("--disk-allocation",), "the disk of each task is measured and limited without file systems of its own"),
    (("--debug-release-reset",), "use --debug-rotate-max"),
)
"""The same without a value."""

EPILOG = """
The secret: a worker of the same user on the same machine (or a shared home) finds the manager's secret by itself;
elsewhere copy the manager's password file to the node and name it with --password.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="vine_worker",
        description="Run tasks for a vine manager on this machine.",
        epilog=EPILOG,
        usage="vine_worker [options] HOST PORT | HOST:PORT[;HOST:PORT...] | -M NAME",
    )
    _add_manager_options(p)
    _add_resource_options(p)
    _add_time_options(p)
    _add_security_options(p)
    _add_workspace_options(p)
    _add_transfer_options(p)
    _add_task_options(p)
    _add_parent_options(p)
    _add_other_options(p)
    _add_options_without_effect(p)
    return p


class _Ignored(argparse.Action):
    """An option without effect, which is remembered with the reason."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        namespace.ignored = [*namespace.ignored, f"{option} has no effect: {self.const}"]


def _add_options_without_effect(p: argparse.ArgumentParser) -> None:
    """Add the options of TaskVine's worker that people type and that mean nothing here."""
    p.set_defaults(ignored=[])
    for flags, reason in NO_EFFECT:
        p.add_argument(*flags, action=_Ignored, const=reason, help=argparse.SUPPRESS)
    for flags, reason in NO_EFFECT_FLAGS:
        p.add_argument(*flags, action=_Ignored, nargs=0, const=reason, help=argparse.SUPPRESS)


def _add_manager_options(p: argparse.ArgumentParser) -> None:
    """Add the options about where the manager is."""
    p.add_argument(
        "address", nargs="*", metavar="HOST PORT", help="where the manager is: HOST PORT, or HOST:PORT"
    )
    p.add_argument(
        "-M",
        "--manager-name",
        metavar="NAME",
        help="work for a manager that is called so, wherever it is; NAME may be a regular "
        "expression that has to match the whole name. With an "
        "address, too, that is where it is looked for first",
    )
    p.add_argument(
        "--registry",
        metavar="DIR",
        help="folder in which managers with a name are entered (default: what VINE_REGISTRY says, "
        "or the usual one of this user)",
    )
    p.add_argument(
        "-C",
        "--catalog",
        metavar="HOST:PORT",
        help="also look for managers at a catalog server, or several, with commas (default: what "
        "CATALOG_HOST says, or none)",
    )


def _add_resource_options(p: argparse.ArgumentParser) -> None:
    """Add the options about which resources the worker offers."""
    p.add_argument(
        "--cores",
        type=parse_cores,
        help="cores to offer (default: what the variable CORES says; without it, and with 0: what "
        "affinity and cgroups allow)",
    )
    p.add_argument(
        "--memory",
        type=parse_amount_mb,
        metavar="MB",
        help="memory to offer, in MB, or with a unit, such as 2GB (default: MEMORY; without it, "
        "and with 0: what the machine and cgroups allow)",
    )
    p.add_argument(
        "--disk",
        type=parse_amount_mb,
        metavar="MB",
        help="disk to offer, in MB, or with a unit, such as 20GB (default: DISK; without it, and "
        "with 0: half of what is free in the workspace)",
    )
    p.add_argument(
        "--gpus",
        type=parse_gpus,
        help="gpus to offer, 0 for none (default: GPUS; without it: what nvidia-smi lists)",
    )
    p.add_argument(
        "--disk-percent",
        type=_parse_percent,
        metavar="PERCENT",
        help="disk to offer, in percent of what is free in the workspace, unless --disk says it",
    )


def _add_time_options(p: argparse.ArgumentParser) -> None:
    """Add the options about how long the worker stays."""
    p.add_argument(
        "-t",
        "--timeout",
        type=_parse_seconds,
        default=900.0,
        metavar="S",
        help="leave after so long without work or manager (default: 900)",
    )
    p.add_argument(
        "--idle-timeout",
        type=_parse_seconds,
        metavar="S",
        help="leave after so long without work (default: --timeout)",
    )
    p.add_argument(
        "--connect-timeout",
        type=_parse_seconds,
        metavar="S",
        help="give up after so long without a manager (default: --timeout)",
    )
    p.add_argument(
        "--wall-time",
        type=_parse_finite_seconds,
        metavar="S",
        help="end after so long: takes no task that would not be over by then, and hands over "
        "what only it has before",
    )
    p.add_argument(
        "--grace",
        type=_parse_finite_seconds,
        default=DEFAULT_GRACE_S,
        metavar="S",
        help="for handing over what only it has when it gets SIGTERM or SIGINT, its wall time is "
        "over or it was idle; a second signal ends "
        f"it at once (default: {DEFAULT_GRACE_S:g})",
    )
    p.add_argument(
        "-i",
        "--min-backoff",
        type=_parse_finite_seconds,
        default=MIN_BACKOFF_S,
        metavar="S",
        help="wait so long after the first failure to reach a manager, then longer and longer "
        f"(default: {MIN_BACKOFF_S:g})",
    )
    p.add_argument(
        "-b",
        "--max-backoff",
        type=_parse_finite_seconds,
        default=MAX_BACKOFF_S,
        metavar="S",
        help=f"wait no longer than this (default: {MAX_BACKOFF_S:g})",
    )
    p.add_argument(
        "--single-shot",
        action="store_true",
        help="leave when the manager does, instead of waiting for the next one",
    )


def _add_security_options(p: argparse.ArgumentParser) -> None:
    """Add the options about secret and TLS."""
    p.add_argument(
        "-P",
        "--password",
        metavar="FILE",
        help="file with the manager's secret; - for the first line of standard input",
    )
    p.add_argument(
        "--ssl",
        action="store_true",
        help="speak TLS with a manager that has a certificate whose fingerprint is in the file "
        "beside the secret, SECRET.fingerprint",
    )
    p.add_argument(
        "--ssl-fingerprint",
        action="append",
        default=[],
        metavar="SHA256",
        help="speak TLS with a manager that has this certificate (may be repeated)",
    )


def _add_workspace_options(p: argparse.ArgumentParser) -> None:
    """Add the options about the workspace."""
    p.add_argument(
        "-s",
        "--workspace",
        "--workdir",
        metavar="DIR",
        help="where to keep files (default: the temporary folder)",
    )
    p.add_argument(
        "--keep-workspace",
        action="store_true",
        help="leave files of the cache level 'forever' in the workspace, in the folder vine-kept, "
        "for the next worker "
        "that has the same --workspace and secret; no more of them than --disk allows",
    )


def _add_transfer_options(p: argparse.ArgumentParser) -> None:
    """Add the options about transfers between workers."""
    p.add_argument(
        "--transfer-port",
        type=_parse_ports,
        default=(0, 0),
        metavar="PORT|LOW:HIGH",
        help="where other workers fetch files from this one: a port, or the first free one of a "
        "range (default: any)",
    )
    p.add_argument(
        "--max-transfer-procs",
        type=_parse_thread_count,
        default=TRANSFER_THREADS,
        metavar="N",
        help=f"fetch so many files at the same time (default: {TRANSFER_THREADS})",
    )
    p.add_argument(
        "--transfer-address",
        default="",
        metavar="ADDRESS",
        help="the address of this machine on which other workers fetch files from this one, such "
        "as 127.0.0.1 (default: all)",
    )
    p.add_argument(
        "--contact-hostport",
        type=_parse_contact,
        default="",
        metavar="HOST:PORT",
        help="what other workers are told to dial, if that is not what the manager sees, such as "
        "a forwarded port; :PORT for another port only",
    )


def _add_task_options(p: argparse.ArgumentParser) -> None:
    """Add the options about how tasks run."""
    p.add_argument(
        "--task-wrapper",
        default="",
        metavar="COMMAND",
        help="a command that runs the commands of tasks, and the Python of functions",
    )


def _add_parent_options(p: argparse.ArgumentParser) -> None:
    """Add the options about the process that has started the worker."""
    p.add_argument(
        "--parent-death",
        type=_parse_pid,
        nargs="?",
        const=os.getppid(),
        metavar="PID",
        help="leave when the process that has started this one, perhaps through others, is gone",
    )
    p.add_argument(
        "--leash",
        type=_parse_seconds,
        metavar="S",
        help="leave when standard input ends, or when nothing has come from it for so long",
    )


def _add_other_options(p: argparse.ArgumentParser) -> None:
    """Add the options about features, the one-file worker, and messages."""
    p.add_argument(
        "--feature",
        action="append",
        default=[],
        metavar="NAME",
        help="say that this worker has something special (may be repeated)",
    )
    p.add_argument(
        "--pyz",
        nargs="?",
        const="",
        metavar="PATH",
        help="run no worker, but write one as a single file that any Python from 3.9 runs, and "
        "print where it is: at PATH, "
        "or in your cache folder",
    )
    p.add_argument(
        "-d",
        "--debug",
        nargs="?",
        const="all",
        metavar="SUBSYSTEM",
        help="say what happens, in detail; all subsystems are the same",
    )
    p.add_argument(
        "-o",
        "--debug-file",
        default="",
        metavar="FILE",
        help="write to this file what the worker says (default: standard error)",
    )
    p.add_argument(
        "--debug-rotate-max",
        "--debug-max-rotate",
        type=_parse_bytes,
        default=0,
        metavar="BYTES",
        help="rename this file to FILE.1 when it is so large, and begin a new one (default: 0, never)",
    )
    p.add_argument("-v", "--version", action="version", version=f"vine_worker {__version__}")


def parse_cores(text: str) -> Optional[int]:
    """Return a number of cores; "all", "auto", 0 and -1 mean what is there, as with TaskVine's worker."""
    return _parse_count(text, "'all'", 0)


def parse_gpus(text: str) -> Optional[int]:
    """Return a number of gpus; "all", "auto" and -1 mean what is there, 0 none."""
    return _parse_count(text, "0 for none, or 'all'", -1)


def _parse_count(text: str, allowed: str, everything: int) -> Optional[int]:
    if text.strip().lower() in ("all", "auto"):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # it is not of infinity and NaN either
    if not value.is_integer() or not -1 <= value <= MAX_COUNT:
        msg = f"{text!r} is not a whole number of 1 or more, or {allowed}"
        raise argparse.ArgumentTypeError(msg)
    return None if value <= everything else int(value)


def parse_amount_mb(text: str) -> Optional[int]:
    """Return an amount of memory or disk in MB; "all", "auto", 0 and -1 mean what is there, as with TaskVine's worker."""
    from vinecore.protocol.amounts import parse_megabytes

    if text.strip().lower() in ("all", "auto", "-1"):
        return None
    try:
        value = parse_megabytes(text)
    except ValueError as error:
        msg = f"{error}; or 'all'"
        raise argparse.ArgumentTypeError(msg) from None
    if not value and not set(text).isdisjoint("123456789"):
        msg = f"{text!r} is less than 1 MB: give megabytes, or 'all'"
        raise argparse.ArgumentTypeError(msg)
    return value or None


def _parse_pid(text: str) -> int:
    """Return the number of a process."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 31):
        msg = f"{text!r} is not the number of a process: give its PID, or none for the one that starts this"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _parse_percent(text: str) -> float:
    """Return a part of the whole, in percent."""
    value = _parse_seconds(text)
    if not 0 < value <= 100:
        msg = f"{text!r} is not a number between 0 and 100"
        raise argparse.ArgumentTypeError(msg)
    return value


def _parse_bytes(text: str) -> int:
    """Return a number of bytes."""
    if not (text.isascii() and text.isdigit() and int(text) < MAX_COUNT):
        msg = f"{text!r} is not a number of bytes, 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _parse_thread_count(text: str) -> int:
    """Return a number of threads."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MAX_TRANSFER_THREADS):
        msg = f"{text!r} is not a number between 1 and {MAX_TRANSFER_THREADS}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _parse_ports(text: str) -> tuple[int, int]:
    from vinecore.protocol.ports import parse_ports

    try:
        return parse_ports(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parse_contact(text: str) -> str:
    host, separator, port = text.rpartition(":")
    if not text:
        return ""
    if not separator or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        msg = f"{text!r} is not an address: give HOST:PORT, or :PORT"
        raise argparse.ArgumentTypeError(msg)
    return f"{host.strip('[]')}:{port}"


def _parse_finite_seconds(text: str) -> float:
    """Return a finite duration in seconds."""
    value = _parse_seconds(text)
    if value == math.inf:
        msg = f"{text!r} is not a number of seconds, 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return value


def _parse_seconds(text: str) -> float:
    """Return a duration in seconds that may be infinite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # it is not of NaN either
    if not value >= 0:
        msg = f"{text!r} is not a number of seconds, 0 or more (inf: for ever)"
        raise argparse.ArgumentTypeError(msg)
    return value
