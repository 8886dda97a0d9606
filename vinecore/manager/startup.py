"""Evaluate the arguments of `Manager` and variables: ports, secret, TLS, journal, announcement."""

from __future__ import annotations

import logging
import os
import secrets
import ssl
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from vinecore import validators
from vinecore.discovery.announcer import ManagerAnnouncer, make_record
from vinecore.journal.previous_session import PreviousSession, find_previous_session
from vinecore.journal.records import MOST_RECENT
from vinecore.journal.writer import TEMPLATE, JournalWriter
from vinecore.manager.compatibility import package_versions
from vinecore.protocol import tls
from vinecore.protocol.discovery.catalog import configured_servers, parse_servers
from vinecore.protocol.discovery.registry import registry_directory
from vinecore.scheduler import queries
from vinecore.security import certificates, shared_secret
from vinecore.server.object_store import remove_leftover_staging
from vinecore.server.server import ManagerServer

log = logging.getLogger("vinecore")

DEFAULT_PORT = 9123
PORT_ENVIRONMENT_VARIABLES = {"VINE_PORT", "VINE_LOW_PORT", "VINE_HIGH_PORT", "TCP_LOW_PORT", "TCP_HIGH_PORT"}


def make_journal_writer(
    folder: Path,
    template: str | None,
    *,
    name: str,
    session: str,
    durable: bool,
    resumed_from: Path | None,
    run_logs: bool = False,
) -> JournalWriter:
    """Make the writer of a manager's journal.

    Parameters
    ----------
    folder
        The folder in which the journal gets a folder of its own.
    template
        The name of this one, for ``strftime``; None for the usual one.
    name, session
        The manager's name, and the random text in the names of its own files.
    durable
        Whether the journal has to survive a crash of the machine, because another manager may resume from it.
    resumed_from
        The journal that this manager resumes from, if there is one.
    run_logs
        Whether the logs that tools for TaskVine read are written, too.
    """
    header = {"manager": name, "session": session, "packages": package_versions()}
    return JournalWriter(
        folder,
        template=template or TEMPLATE,
        durable=durable,
        run_logs=run_logs,
        resumes=str(resumed_from or ""),
        **header,
    )


def run_info_template(template: Any) -> str | None:
    """Check the name of the folder of a run, which is one for ``strftime``."""
    if template is None:
        return None
    text = validators.label("run_info_template", template)
    name = datetime.now().astimezone().strftime(text)
    if "/" in name or "\0" in name or name in ("", ".", "..", MOST_RECENT):
        validators.refuse("run_info_template", template, "the name of a folder, such as 'run-%Y-%m-%d'")
    return text


def staging_parent(staging_path: Any) -> str | None:
    """Make the folder for files on their way below the one that the user gives; None for the usual one."""
    if staging_path is None:
        return None
    parent = Path(validators.path("staging_path", staging_path)).expanduser().absolute() / "vine-staging"
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return str(parent)


def make_tls_context(tls_files: Any, password_file: Path) -> tuple[ssl.SSLContext, str]:
    """Prepare TLS, and put the fingerprint by which workers know this manager beside the secret.

    Parameters
    ----------
    tls_files
        True for the certificate of this user, or the paths of a key and of its certificate.
    password_file
        The file with the secret.

    Returns
    -------
    context, fingerprint
    """
    # Each worker gets a certificate. If none can be made, the error comes before anything is started.
    certificates.make_certificate()
    if tls_files is True:
        key = certificate = certificates.load_or_create_user_certificate()
    else:
        try:
            key, certificate = map(Path, tls_files)
        except (TypeError, ValueError):
            msg = (
                f"ssl={tls_files!r}: use True, or the paths of a key and of its certificate: "
                "ssl=('key.pem', 'certificate.pem')"
            )
            raise ValueError(msg) from None
    fingerprint = certificates.fingerprint_of(certificate)
    try:
        context = tls.server_context(str(certificate), str(key))
    except OSError as error:
        msg = (
            f"ssl: {key} and {certificate} are not a key and its certificate in PEM, "
            f"without a passphrase: {error}"
        )
        raise ValueError(msg) from error
    try:
        certificates.write_fingerprint(fingerprint, password_file)
    except OSError as error:
        log.warning(
            "cannot write the fingerprint beside %s: %s; start workers with --ssl-fingerprint %s",
            password_file,
            error.strerror,
            fingerprint,
        )
    return context, fingerprint


def announce_manager(
    server: ManagerServer,
    folder: str,
    servers: tuple[tuple[str, int], ...],
    properties: Mapping[str, Any],
    *,
    has_tls: bool,
) -> ManagerAnnouncer:
    """Announce a manager to a registry and catalog servers, until the announcer is closed.

    Parameters
    ----------
    server
        The manager's server.
    folder
        The registry; "" for none.
    servers
        The catalog servers.
    properties
        Further fields of the record, which may change.
    has_tls
        Whether connections are protected by TLS.
    """
    record = make_record(
        name=server.name, key=secrets.token_hex(16), bound=server.bound, port=server.port, ssl=has_tls
    )

    def status_figures() -> dict[str, Any]:
        stats = server.queue_stats()
        return {
            **properties,
            "tasks_waiting": stats.waiting,
            "tasks_running": stats.running,
            "tasks_on_workers": stats.running,
            "tasks_left": stats.waiting + stats.running + stats.left,
            "tasks_total_cores": stats.cores,
            "capacity_tasks": stats.capacity,
            "workers": stats.workers,
            "workers_connected": stats.workers,
        }

    return ManagerAnnouncer(
        record, status_figures, folder, servers, lambda: server.query(queries.update_interval_s)
    )


def load_previous_session(folder: Path, name: str | None, staging: str | None) -> PreviousSession | None:
    """Return what the manager has left that this one resumes from, and remove what is not needed of that."""
    previous = find_previous_session(folder, name)
    if previous is not None:
        remove_leftover_staging(previous.sessions, staging)
        log.info(
            "resuming from %s: %d results are known, %d workers may reconnect",
            previous.journal, len(previous.results), len(previous.workers),
        )  # fmt: skip
    return previous


def journal_directory(run_info_path: str | Path | bool | None) -> Path | None:
    """Return the folder that journals are written to, or None for no journal."""
    if run_info_path is None:
        run_info_path = os.environ.get("VINE_RUN_INFO_PATH") or False
    if run_info_path is False:
        return None
    path = "vine-run-info" if run_info_path is True else validators.path("run_info_path", run_info_path)
    return Path(path).expanduser().absolute()


def load_secret(password_file: Any) -> tuple[bytes, Path]:
    """Return the secret in a file, or that of this user, and its path."""
    if password_file is None:
        return shared_secret.load_or_create_user_secret()
    path = Path(validators.path("password_file", password_file))
    return shared_secret.read_secret(path), path


def registry_folder(registry: Any) -> str:
    """Return the registry in which a manager with a name is entered; "" for none."""
    usual = registry is None or registry is True
    return (
        ""
        if registry is False
        else registry_directory("" if usual else validators.path("registry", registry))
    )


def catalog_servers(catalog: Any) -> tuple[tuple[str, int], ...]:
    """Return the catalog servers that a manager with a name reports to."""
    usual = catalog is None or catalog is True
    return (
        ()
        if catalog is False
        else parse_servers(configured_servers("" if usual else validators.text("catalog", catalog)))
    )


def port_range(port: int | Sequence[int]) -> tuple[int, int]:
    """Return the lowest and highest port to listen on, from an argument or, for 0, from the environment."""
    if port == 0 and os.environ.keys() & PORT_ENVIRONMENT_VARIABLES:
        return _port_range_of_environment()
    allowed = "a number from 0 (any) to 65535, or a pair such as (9000, 9100)"
    pair = list(port) if isinstance(port, Sequence) and not isinstance(port, str | bytes) else [port, port]
    if len(pair) != 2:
        validators.refuse("port", port, allowed)
    try:
        low, high = (validators.whole("port", one, 0, 65535) for one in pair)
    except (TypeError, ValueError) as error:
        validators.refuse("port", port, allowed, type(error))
    if low > high:
        validators.refuse("port", port, allowed)
    return low, high


def _port_range_of_environment() -> tuple[int, int]:
    """Read the ports that "any" means where this runs, under the names that cctools have for them."""
    found = {
        name: os.environ[name].strip() for name in sorted(PORT_ENVIRONMENT_VARIABLES) if name in os.environ
    }
    for name, text in found.items():
        if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
            msg = f"the variable {name} is {text!r}: set it to a port from 1 to 65535, or unset it"
            raise ValueError(msg)
    if "VINE_PORT" in found:
        return int(found["VINE_PORT"]), int(found["VINE_PORT"])
    low = int(found.get("TCP_LOW_PORT") or found.get("VINE_LOW_PORT") or 1024)
    high = int(found.get("TCP_HIGH_PORT") or found.get("VINE_HIGH_PORT") or 65535)
    if low > high:
        msg = f"the variables {' and '.join(found)} leave no port: {low} is above {high}"
        raise ValueError(msg)
    return low, high
