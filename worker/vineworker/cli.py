"""The command ``vine_worker``."""

from __future__ import annotations

import argparse
import logging
import math
import os
import resource
import stat
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

from vineworker import __version__
from vineworker.machine import inherited_state
from vineworker.machine.resources import detect

if TYPE_CHECKING:
    from vinecore.protocol.discovery.finder import ManagerFinder

MOST_FILES = 65536
GRACE_S = 25.0
"""Batch systems kill what has not left 30 s after they have asked it to."""
MOST_SECRET = 4096
MOST = 1 << 53

EPILOG = """
The secret: a worker of the same user on the same machine (or a shared home) finds the manager's secret by itself;
elsewhere copy the manager's password file to the node and name it with --password.
"""


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    p = argparse.ArgumentParser(
        prog="vine_worker",
        description="Run tasks for a vine manager on this machine.",
        epilog=EPILOG,
        usage="vine_worker [options] HOST PORT | HOST:PORT[;HOST:PORT...] | -M NAME",
    )
    p.add_argument(
        "address", nargs="*", metavar="HOST PORT", help="where the manager is: HOST PORT, or HOST:PORT"
    )
    p.add_argument(
        "-M",
        "--manager-name",
        metavar="NAME",
        help="work for a manager that is called so, wherever it is; NAME may be a regular expression that has to match the whole name. With an "
        "address, too, that is where it is looked for first",
    )
    p.add_argument(
        "--registry",
        metavar="DIR",
        help="folder in which managers with a name are entered (default: what VINE_REGISTRY says, or the usual one of this user)",
    )
    p.add_argument(
        "-C",
        "--catalog",
        metavar="HOST:PORT",
        help="also look for managers at a catalog server, or several, with commas (default: what CATALOG_HOST says, or none)",
    )
    p.add_argument(
        "--cores",
        type=_cores,
        help="cores to offer (default: what the variable CORES says; without it, and with 0: what affinity and cgroups allow)",
    )
    p.add_argument(
        "--memory",
        type=_megabytes,
        metavar="MB",
        help="memory to offer, in MB, or with a unit, such as 2GB (default: MEMORY; without it, and with 0: what the machine and cgroups allow)",
    )
    p.add_argument(
        "--disk",
        type=_megabytes,
        metavar="MB",
        help="disk to offer, in MB, or with a unit, such as 20GB (default: DISK; without it, and with 0: half of what is free in the workspace)",
    )
    p.add_argument(
        "--gpus",
        type=_gpus,
        help="gpus to offer, 0 for none (default: GPUS; without it: what nvidia-smi lists)",
    )
    p.add_argument(
        "-t",
        "--timeout",
        type=_patience,
        default=900.0,
        metavar="S",
        help="leave after so long without work or manager (default: 900)",
    )
    p.add_argument(
        "--idle-timeout",
        type=_patience,
        metavar="S",
        help="leave after so long without work (default: --timeout)",
    )
    p.add_argument(
        "--connect-timeout",
        type=_patience,
        metavar="S",
        help="give up after so long without a manager (default: --timeout)",
    )
    p.add_argument(
        "--wall-time",
        type=_seconds,
        metavar="S",
        help="end after so long: takes no task that would not be over by then, and hands over what only it has before",
    )
    p.add_argument(
        "--grace",
        type=_seconds,
        default=GRACE_S,
        metavar="S",
        help="for handing over what only it has when it gets SIGTERM or SIGINT, its wall time is over or it was idle; a second signal ends "
        f"it at once (default: {GRACE_S:g})",
    )
    p.add_argument(
        "-P",
        "--password",
        metavar="FILE",
        help="file with the manager's secret; - for the first line of standard input",
    )
    p.add_argument(
        "--ssl",
        action="store_true",
        help="speak TLS with a manager that has a certificate whose fingerprint is in the file beside the secret, SECRET.fingerprint",
    )
    p.add_argument(
        "--ssl-fingerprint",
        action="append",
        default=[],
        metavar="SHA256",
        help="speak TLS with a manager that has this certificate (may be repeated)",
    )
    p.add_argument(
        "-s", "--workspace", metavar="DIR", help="where to keep files (default: the temporary folder)"
    )
    p.add_argument(
        "--keep-workspace",
        action="store_true",
        help="leave files of the cache level 'forever' in the workspace, in the folder vine-kept, for the next worker "
        "that has the same --workspace and secret; no more of them than --disk allows",
    )
    p.add_argument(
        "--single-shot",
        action="store_true",
        help="leave when the manager does, instead of waiting for the next one",
    )
    p.add_argument(
        "--transfer-port",
        type=_ports,
        default=(0, 0),
        metavar="PORT|LOW:HIGH",
        help="where other workers fetch files from this one: a port, or the first free one of a range (default: any)",
    )
    p.add_argument(
        "--transfer-address",
        default="",
        metavar="ADDRESS",
        help="the address of this machine on which other workers fetch files from this one, such as 127.0.0.1 (default: all)",
    )
    p.add_argument(
        "--contact-hostport",
        type=_contact,
        default="",
        metavar="HOST:PORT",
        help="what other workers are told to dial, if that is not what the manager sees, such as a forwarded port; :PORT for another port only",
    )
    p.add_argument(
        "--parent-death",
        type=_pid,
        nargs="?",
        const=os.getppid(),
        metavar="PID",
        help="leave when the process that has started this one, perhaps through others, is gone",
    )
    p.add_argument(
        "--leash",
        type=_patience,
        metavar="S",
        help="leave when standard input ends, or when nothing has come from it for so long",
    )
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
        help="run no worker, but write one as a single file that any Python from 3.9 runs, and print where it is: at PATH, "
        "or in your cache folder",
    )
    p.add_argument("-d", "--debug", action="store_true", help="say what happens, in detail")
    p.add_argument("--version", action="version", version=f"vine_worker {__version__}")
    return p


def _cores(text: str) -> Optional[int]:
    """Understand a number of cores; "all", "auto", 0 and -1 mean what is there, as with TaskVine's worker."""
    return _count(text, "'all'", 0)


def _gpus(text: str) -> Optional[int]:
    """Understand a number of gpus; "all", "auto" and -1 mean what is there, 0 none."""
    return _count(text, "0 for none, or 'all'", -1)


def _count(text: str, allowed: str, everything: int) -> Optional[int]:
    if text.strip().lower() in ("all", "auto"):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value.is_integer() or not -1 <= value <= MOST:  # it is not of infinity and NaN either
        msg = f"{text!r} is not a whole number of 1 or more, or {allowed}"
        raise argparse.ArgumentTypeError(msg)
    return None if value <= everything else int(value)


def _megabytes(text: str) -> Optional[int]:
    """Understand an amount of memory or disk; "all", "auto", 0 and -1 mean what is there, as with TaskVine's worker."""
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


def _pid(text: str) -> int:
    """Understand the number of a process."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 31):
        msg = f"{text!r} is not the number of a process: give its PID, or none for the one that starts this"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _ports(text: str) -> tuple[int, int]:
    from vinecore.protocol.ports import parse_ports

    try:
        return parse_ports(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _contact(text: str) -> str:
    host, separator, port = text.rpartition(":")
    if not text:
        return ""
    if not separator or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        msg = f"{text!r} is not an address: give HOST:PORT, or :PORT"
        raise argparse.ArgumentTypeError(msg)
    return f"{host.strip('[]')}:{port}"


def _seconds(text: str) -> float:
    """Understand a duration."""
    value = _patience(text)
    if value == math.inf:
        msg = f"{text!r} is not a number of seconds, 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return value


def _patience(text: str) -> float:
    """Understand a duration that may be infinite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:  # it is not of NaN either
        msg = f"{text!r} is not a number of seconds, 0 or more (inf: for ever)"
        raise argparse.ArgumentTypeError(msg)
    return value


def secret_file() -> str:
    """Where the secret of this user is kept."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "daskvine", "secret")


def parse_addresses(words: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Understand HOST PORT, HOST:PORT and several of the latter with semicolons between.

    Raises
    ------
    ValueError
        It is none of them.
    """
    if len(words) == 1 and ";" in words[0]:
        return tuple(parse_address([word]) for word in words[0].split(";") if word)
    return (parse_address(words),)


def parse_address(words: Sequence[str]) -> tuple[str, int]:
    """Understand HOST PORT and HOST:PORT.

    Raises
    ------
    ValueError
        It is neither.
    """
    if not words:
        msg = "no address: give HOST PORT or HOST:PORT, such as localhost:9123, or the manager's name with -M NAME"
        raise ValueError(msg)
    host, separator, port = (words[0], ":", words[1]) if len(words) == 2 else words[0].rpartition(":")
    if len(words) > 2 or not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        msg = f"{' '.join(words)!r} is not an address: give HOST PORT or HOST:PORT, such as localhost:9123"
        raise ValueError(msg)
    return host.strip("[]"), int(port)


def main() -> None:
    """Run the command, and leave without waiting for helper threads: whatever they wait for, all that was theirs has been removed."""
    inherited_state.put_right()
    try:
        code = run()
    except KeyboardInterrupt:  # before the worker has a loop that takes the signal
        code = 130
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def run(arguments: Optional[Sequence[str]] = None) -> int:
    """Understand the arguments and work; give the exit code."""
    p = parser()
    options = p.parse_args(arguments)
    level = logging.DEBUG if options.debug else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s vine_worker: %(message)s", stream=sys.stderr)
    if options.pyz is not None:
        return _write_pyz(p, options)
    addresses, finder = _whereabouts(p, options)
    if options.keep_workspace and not options.workspace:
        p.error("--keep-workspace needs a workspace that the next worker can name: add --workspace DIR")
    path = options.password or secret_file()
    if options.leash is not None and not stat.S_ISFIFO(os.fstat(0).st_mode):
        p.error("--leash needs a pipe as standard input, which is held by what has started the worker")
    try:
        secret = _read_secret(path)
    except OSError as error:
        p.error(
            f"no secret at {path} ({error.strerror}): start the manager on this machine first, or copy its password file here and name it with --password FILE"
        )
    if path == "-" and not secret:
        p.error("no secret came from standard input, as --password - has announced")
    fingerprints = _fingerprints(p, options, path)
    workspace = os.path.abspath(options.workspace or tempfile.gettempdir())
    try:
        os.makedirs(workspace, exist_ok=True)
    except OSError as error:
        p.error(f"the workspace {workspace} cannot be made: {error.strerror}")
    resources = detect(workspace, options.cores, options.memory, options.disk, options.gpus)
    for name in ("CORES", "MEMORY", "DISK", "GPUS"):
        os.environ.pop(name, None)  # they were defaults for this worker; tasks get their own
    for note in resources.notes:
        logging.getLogger("vine_worker").info(note)
    from vineworker.manager_connection import ManagerConnector
    from vineworker.worker import (  # asyncio takes longest to import: say what is wrong with the arguments before
        Worker,
        WorkerSettings,
    )

    settings = WorkerSettings(
        secret,
        resources,
        workspace,
        options.timeout if options.idle_timeout is None else options.idle_timeout,
        options.single_shot,
        tuple(options.feature),
        options.parent_death,
        options.keep_workspace,
        options.timeout if options.connect_timeout is None else options.connect_timeout,
        options.wall_time,
        options.grace,
        options.leash,
        options.transfer_port,
        options.contact_hostport,
        options.transfer_address,
    )
    _raise_limit_of_files()

    def known() -> tuple[str, ...]:
        from vinecore.protocol import tls

        return tls.known_fingerprints(path)

    try:
        worker = Worker(settings, ManagerConnector(secret, addresses, finder, fingerprints, known))
    except OSError as error:
        p.error(f"the workspace {workspace} cannot be used: {error.strerror}")
    return worker.run()


def _whereabouts(
    p: argparse.ArgumentParser, options: argparse.Namespace
) -> tuple[tuple[tuple[str, int], ...], Optional[ManagerFinder]]:
    """Understand where the manager may be: addresses, and how to find it by its name."""
    try:
        addresses = () if options.manager_name and not options.address else parse_addresses(options.address)
        if not options.manager_name:
            return addresses, None
        from vinecore.protocol.discovery import catalog, registry  # not needed elsewhere
        from vinecore.protocol.discovery.finder import ManagerFinder

        servers = catalog.parse_servers(catalog.configured_servers(options.catalog or ""))
        return addresses, ManagerFinder(
            options.manager_name, registry.registry_directory(options.registry or ""), servers
        )
    except ValueError as error:
        p.error(str(error))


def _read_secret(path: str) -> bytes:
    """Read the secret from a file, or from standard input up to the end of a line, and no further."""
    if path != "-":
        with open(path, "rb") as file:
            return file.read().strip()
    secret = b""
    while len(secret) < MOST_SECRET and (byte := os.read(0, 1)) not in (b"", b"\n"):
        secret += byte
    return secret.strip()


def _fingerprints(p: argparse.ArgumentParser, options: argparse.Namespace, secret: str) -> tuple[str, ...]:
    """Find which certificates the manager may have; none without TLS."""
    if not (options.ssl or options.ssl_fingerprint):
        return ()
    from vinecore.protocol import tls

    try:
        if options.ssl_fingerprint:
            return tuple(map(tls.parse_fingerprint, options.ssl_fingerprint))
        return tls.known_fingerprints(secret)
    except ValueError as error:
        p.error(str(error))


def _write_pyz(p: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Write the worker as one file; give the exit code."""
    from vineworker import zipapp_builder

    if options.address:
        p.error("--pyz runs no worker: leave out the address")
    try:
        print(zipapp_builder.write(options.pyz))
    except OSError as error:
        p.error(
            f"{options.pyz or error.filename} cannot be written: {error.strerror}; name another place with --pyz PATH"
        )
    return 0


def _raise_limit_of_files() -> None:
    """Allow more open files, as far as this user may: a slot takes several."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    main()
