"""The command ``vine_worker``."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import shutil
import stat
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

from vinecore.protocol import MB, debug_log
from vineworker.machine import inherited_state
from vineworker.machine.resources import detect_resources
from vineworker.options import make_parser

if TYPE_CHECKING:
    from vinecore.protocol.discovery.finder import ManagerFinder

MAX_OPEN_FILES = 65536
MAX_SECRET_BYTES = 4096


def secret_file() -> str:
    """Return the path of this user's secret."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "daskvine", "secret")


def parse_addresses(words: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Parse HOST PORT, HOST:PORT, or several of the latter separated by semicolons.

    Raises
    ------
    ValueError
        It is none of them.
    """
    if len(words) == 1 and ";" in words[0]:
        return tuple(parse_address([word]) for word in words[0].split(";") if word)
    return (parse_address(words),)


def parse_address(words: Sequence[str]) -> tuple[str, int]:
    """Parse HOST PORT or HOST:PORT.

    Raises
    ------
    ValueError
        It is neither.
    """
    if not words:
        msg = (
            "no address: give HOST PORT or HOST:PORT, such as localhost:9123, or the manager's "
            "name with -M NAME"
        )
        raise ValueError(msg)
    host, separator, port = (words[0], ":", words[1]) if len(words) == 2 else words[0].rpartition(":")
    if len(words) > 2 or not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        msg = f"{' '.join(words)!r} is not an address: give HOST PORT or HOST:PORT, such as localhost:9123"
        raise ValueError(msg)
    return host.strip("[]"), int(port)


def main() -> None:
    """Run the command, and leave without waiting for helper threads: whatever they wait for, all that was theirs has been removed."""
    inherited_state.reset_inherited_state()
    try:
        code = run()
    except KeyboardInterrupt:
        # before the worker has a loop that takes the signal
        code = 130
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def run(arguments: Optional[Sequence[str]] = None) -> int:
    """Understand the arguments and work; give the exit code."""
    p = make_parser()
    options = p.parse_args(arguments)
    debug, options.address = debug_log.separate_subsystem(options.debug, options.address)
    try:
        debug_log.start_log("vine_worker", debug, options.debug_file, options.debug_rotate_max)
    except OSError as error:
        p.error(f"the log cannot be written to {options.debug_file}: {error.strerror}")
    for text in options.ignored:
        logging.getLogger("vine_worker").info("%s", text)
    if options.pyz is not None:
        return _write_pyz(p, options)
    addresses, finder = _find_manager_sources(p, options)
    if options.keep_workspace and not options.workspace:
        p.error("--keep-workspace needs a workspace that the next worker can name: add --workspace DIR")
    path = options.password or secret_file()
    if options.leash is not None and not stat.S_ISFIFO(os.fstat(0).st_mode):
        p.error("--leash needs a pipe as standard input, which is held by what has started the worker")
    try:
        secret = _read_secret(path)
    except OSError as error:
        p.error(
            f"no secret at {path} ({error.strerror}): start the manager on this machine first, or "
            "copy its password file here and name it with --password FILE"
        )
    if path == "-" and not secret:
        p.error("no secret came from standard input, as --password - has announced")
    fingerprints = _accepted_fingerprints(p, options, path)
    workspace = os.path.abspath(options.workspace or tempfile.gettempdir())
    try:
        os.makedirs(workspace, exist_ok=True)
    except OSError as error:
        p.error(f"the workspace {workspace} cannot be made: {error.strerror}")
    if options.disk is None and options.disk_percent is not None:
        free_mb = shutil.disk_usage(workspace).free / MB
        options.disk = max(1, int(free_mb * options.disk_percent / 100))
    resources = detect_resources(workspace, options.cores, options.memory, options.disk, options.gpus)
    for name in ("CORES", "MEMORY", "DISK", "GPUS"):
        # they were defaults for this worker; tasks get their own
        os.environ.pop(name, None)
    for note in resources.notes:
        logging.getLogger("vine_worker").info(note)
    # asyncio takes longest to import: report mistakes in the arguments before
    from vineworker.manager_connection import ManagerConnector
    from vineworker.settings import WorkerSettings
    from vineworker.worker import Worker

    settings = WorkerSettings(
        secret,
        resources,
        workspace,
        idle_timeout_s=options.timeout if options.idle_timeout is None else options.idle_timeout,
        single_shot=options.single_shot,
        features=tuple(options.feature),
        parent=options.parent_death,
        keep_workspace=options.keep_workspace,
        connect_timeout_s=options.timeout if options.connect_timeout is None else options.connect_timeout,
        wall_time_s=options.wall_time,
        grace_s=options.grace,
        stdin_heartbeat_s=options.leash,
        transfer_ports=options.transfer_port,
        contact=options.contact_hostport,
        transfer_address=options.transfer_address,
        transfer_threads=options.max_transfer_procs,
        task_wrapper=options.task_wrapper,
        backoff_s=(options.min_backoff, max(options.min_backoff, options.max_backoff)),
    )
    _raise_open_files_limit()

    def read_fingerprints() -> tuple[str, ...]:
        from vinecore.protocol import tls

        return tls.known_fingerprints(path)

    try:
        worker = Worker(
            settings, ManagerConnector(secret, addresses, finder, fingerprints, read_fingerprints)
        )
    except OSError as error:
        p.error(f"the workspace {workspace} cannot be used: {error.strerror}")
    return worker.run()


def _find_manager_sources(
    p: argparse.ArgumentParser, options: argparse.Namespace
) -> tuple[tuple[tuple[str, int], ...], Optional[ManagerFinder]]:
    """Return the addresses of the manager, and the finder for its name."""
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
    while len(secret) < MAX_SECRET_BYTES and (byte := os.read(0, 1)) not in (b"", b"\n"):
        secret += byte
    return secret.strip()


def _accepted_fingerprints(
    p: argparse.ArgumentParser, options: argparse.Namespace, secret: str
) -> tuple[str, ...]:
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
        print(zipapp_builder.write_zipapp(options.pyz))
    except OSError as error:
        p.error(
            f"{options.pyz or error.filename} cannot be written: {error.strerror}; name another "
            "place with --pyz PATH"
        )
    return 0


def _raise_open_files_limit() -> None:
    """Allow more open files, as far as this user may: a slot takes several."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    main()
