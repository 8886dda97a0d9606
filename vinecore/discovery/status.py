"""The command ``vine_status``: which managers there are, and their workers, tasks, categories and resources."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click

from vinecore.discovery.record_filter import RecordFilter
from vinecore.discovery.status_query import CONNECT_TIMEOUT_S, query_status
from vinecore.protocol import tls
from vinecore.protocol.discovery.catalog import configured_servers, parse_servers
from vinecore.protocol.discovery.finder import ManagerFinder
from vinecore.protocol.discovery.manager_record import DiscoveredManager
from vinecore.protocol.discovery.registry import registry_directory
from vinecore.protocol.handshake import printable
from vinecore.security.shared_secret import secret_path

AT_ONCE = 16
DEFAULT_TIMEOUT_S = CONNECT_TIMEOUT_S
MAX_COMMAND_CHARACTERS = 60


class StatusTable(NamedTuple):
    """A table of the command.

    Attributes
    ----------
    request : str
        What managers are asked for, as in `Manager.status`.
    columns : dict
        The headers, with the fields below them, or functions of records.
    texts : int
        How many of the first columns are texts, and not numbers.
    """

    request: str
    columns: Mapping[str, str | Callable[[dict[str, Any]], Any]]
    texts: int


def _used_of(
    resource: str, total: str = "{}_total", used: str = "{}_inuse"
) -> Callable[[dict[str, Any]], str]:
    def show(row: dict[str, Any]) -> str:
        values = row.get(used.format(resource)), row.get(total.format(resource))
        return "-" if None in values else "/".join(f"{value:g}" for value in values)

    return show


def _command_of(row: dict[str, Any]) -> str:
    text = printable(row.get("command") or row.get("label") or "-")
    return text if len(text) <= MAX_COMMAND_CHARACTERS else f"{text[: MAX_COMMAND_CHARACTERS - 3]}..."


RESOURCES = ("cores", "memory", "disk", "gpus")
MANAGERS = StatusTable(
    "manager",
    {"ADDRESS": "address", "WAITING": "tasks_waiting", "RUNNING": "tasks_on_workers",
     "COMPLETE": "tasks_complete", "WORKERS": "workers"},
    1,
)  # fmt: skip
WORKERS = StatusTable(
    "workers",
    {"HOST": "hostname", "ADDRESS": "address_port", "TASKS": "total_tasks_running",
     **{name.upper(): _used_of(name) for name in RESOURCES}},
    2,
)  # fmt: skip
TASKS = StatusTable(
    "tasks",
    {"STATE": "state", "CATEGORY": "category", "HOST": lambda row: row.get("host") or "-", "COMMAND": _command_of,
     "ID": "taskid", "PRIORITY": "priority", "ATTEMPTS": "attempts"},
    4,
)  # fmt: skip
CATEGORIES = StatusTable(
    "categories",
    {"CATEGORY": "category", "RUNNING": "tasks_running", "WAITING": "tasks_waiting", "DONE": "tasks_done",
     "FIT-WORKERS": "workers_able", **{f"MAX-{name.upper()}": f"max_{name}" for name in RESOURCES}},
    1,
)  # fmt: skip
RESOURCE_TOTALS = StatusTable(
    "manager",
    {"WORKERS": "workers", **{name.upper(): _used_of(name, "total_{}", "committed_{}") for name in RESOURCES},
     **{f"LARGEST-{name.upper()}": f"max_{name}" for name in RESOURCES}},
    0,
)  # fmt: skip
CAPACITY = StatusTable(
    "manager", {"TASKS": "capacity_tasks", **{name.upper(): f"capacity_{name}" for name in RESOURCES}}, 0
)


def query_manager(
    one: DiscoveredManager,
    finder: ManagerFinder | None,
    secret: Path,
    fingerprints: tuple[str, ...],
    request: str,
    timeout_s: float,
) -> list[dict[str, Any]]:
    """Ask a manager that was found; return its records, or one with the reason for having none."""
    about: dict[str, Any] = {"name": one.name, "address": "", "problem": "it has no address"}
    try:
        known = secret.read_bytes().strip()
        if one.ssl and not fingerprints:
            fingerprints = tls.known_fingerprints(str(secret))
    except (OSError, ValueError) as error:
        return [{**about, "problem": printable(error)}]
    suits = None if finder is None else finder.matches
    for host, port in one.addresses:
        about["address"] = f"{host}:{port}"
        try:
            answer = query_status(host, port, known, fingerprints, suits, timeout_s, request)
        except (OSError, ValueError) as error:
            about["problem"] = printable(error)
            continue
        records = answer.get("records")
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            about["problem"] = "its reply has no records"
            continue
        own = {"name": printable(answer.get("name") or one.name), "address": about["address"], "problem": ""}
        return [{**record, **own} for record in records]
    return [about]


def format_table(rows: Sequence[dict[str, Any]], table: StatusTable) -> str:
    """Show records for people."""
    lines = [("MANAGER", *table.columns, "")]
    for row in rows:
        cells = [
            row.get(show, "-") if isinstance(show, str) else show(row) for show in table.columns.values()
        ]
        texts = [f"{cell:g}" if isinstance(cell, float) else printable(cell) for cell in cells]
        lines.append((row["name"], *texts, row["problem"]))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = 1 + table.texts
    return "\n".join(
        "  ".join([
            *(cell.ljust(width) for cell, width in zip(line[:left], widths, strict=False)),
            *(cell.rjust(width) for cell, width in zip(line[left:-1], widths[left:], strict=False)),
            line[-1],
        ]).rstrip()
        for line in lines
    )  # fmt: skip


def format_records(rows: Sequence[dict[str, Any]]) -> str:
    """Show every field of records."""
    return "\n\n".join(
        "\n".join(f"{field}: {printable(json.dumps(value))}" for field, value in sorted(row.items()))
        for row in rows
    )


TABLES = {
    "managers": MANAGERS,
    "workers": WORKERS,
    "tasks": TASKS,
    "categories": CATEGORIES,
    "resources": RESOURCE_TOTALS,
    "capacity": CAPACITY,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("address", nargs=-1, metavar="[HOST PORT | HOST:PORT]")
@click.option("-M", "--manager-name", metavar="NAME", help="Only managers that are called so; may be a regular expression that has to match the whole name.")  # fmt: skip
@click.option(
    "-Q",
    "--statistics",
    "table",
    flag_value="managers",
    default="managers",
    help="Managers and their tasks (the default).",
)
@click.option("-W", "--workers", "table", flag_value="workers", help="Workers of each manager.")
@click.option("-T", "--tasks", "table", flag_value="tasks", help="Unfinished tasks of each manager.")
@click.option(
    "-A",
    "--able",
    "table",
    flag_value="categories",
    help="Categories, and the workers that are large enough for them.",
)
@click.option(
    "-R",
    "--resources",
    "table",
    flag_value="resources",
    help="Resources of all workers of each manager: in use/in all.",
)
@click.option("--capacity", "table", flag_value="capacity", help="How much each manager could keep busy.")
@click.option("-l", "--verbose", is_flag=True, help="Show every field.")
@click.option("--where", metavar="EXPR", help="Only what meets a condition on its fields (-l shows them), such as 'tasks_waiting > 10 && owner == \"me\"'.")  # fmt: skip
@click.option("-t", "--timeout", type=click.FloatRange(0.1, 3600), default=DEFAULT_TIMEOUT_S, metavar="S", help=f"Seconds that a manager may take to answer (default: {DEFAULT_TIMEOUT_S:g}).")  # fmt: skip
@click.option("--registry", type=click.Path(file_okay=False), metavar="DIR", help="Folder in which managers with a name are entered (default: what VINE_REGISTRY says, or the usual one).")  # fmt: skip
@click.option("-C", "--catalog", metavar="HOST:PORT", help="Look for managers also at a catalog server, or several, with commas (default: what CATALOG_HOST says, or none).")  # fmt: skip
@click.option("-P", "--password", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", help="File with the managers' secret.")  # fmt: skip
@click.option("--ssl", is_flag=True, help="Speak TLS with a manager whose fingerprint is in the file beside its secret, SECRET.fingerprint.")  # fmt: skip
@click.option("--ssl-fingerprint", multiple=True, metavar="SHA256", help="Speak TLS with a manager that has this certificate; may be repeated.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    address: tuple[str, ...],
    manager_name: str | None,
    table: str,
    verbose: bool,
    where: str | None,
    timeout: float,
    registry: str | None,
    catalog: str | None,
    password: Path | None,
    ssl: bool,
    ssl_fingerprint: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say which managers there are, and how much each has to do. Without an address, those with a name are looked for."""
    secret, finder = password or secret_path(), None
    shown = TABLES[table]
    try:
        condition = None if where is None else RecordFilter(where)
        fingerprints = tuple(map(tls.parse_fingerprint, ssl_fingerprint))
        if ssl and not fingerprints:
            fingerprints = tls.known_fingerprints(str(secret))
        if address:
            host, colon, port = ":".join(address).rpartition(":")
            if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536 or manager_name:
                msg = "give either one address, HOST PORT or HOST:PORT, or a name with -M, or neither"
                raise ValueError(msg)
            found = [DiscoveredManager("?", "", ((host.strip("[]"), int(port)),))]
        else:
            finder = ManagerFinder(
                manager_name or ".*",
                registry_directory(registry or ""),
                parse_servers(configured_servers(catalog or "")),
            )
            found = sorted(finder.find(), key=lambda one: one.name)
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    def ask(one: DiscoveredManager) -> list[dict[str, Any]]:
        return query_manager(one, finder, secret, fingerprints, shown.request, timeout)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        rows = [row for answer in threads.map(ask, found) for row in answer]
    has_problem = any(row["problem"] for row in rows)
    if condition is not None:
        rows = [row for row in rows if row["problem"] or condition.matches(row)]
    if finder is not None and finder.problem:
        click.echo(printable(finder.problem), err=True)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif rows:
        click.echo(format_records(rows) if verbose else format_table(rows, shown))
    elif not found and finder is not None:
        click.echo(f"there is no manager {finder.description}")
    else:
        click.echo("there is nothing to show")
    sys.exit(0 if found and not has_problem else 1)


def main() -> None:
    """Run the command."""
    command()


if __name__ == "__main__":
    main()
