"""The command ``vine_status``: which managers there are, and what each has to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from vinecore.discovery.status_query import CONNECT_TIMEOUT_S, query_status
from vinecore.protocol import tls
from vinecore.protocol.discovery.catalog import configured_servers, parse_servers
from vinecore.protocol.discovery.finder import ManagerFinder
from vinecore.protocol.discovery.manager_record import DiscoveredManager
from vinecore.protocol.discovery.registry import registry_directory
from vinecore.protocol.handshake import printable
from vinecore.security.shared_secret import secret_path

AT_ONCE = 16
FIGURES = ("waiting", "running", "workers")


def query_manager(
    one: DiscoveredManager, finder: ManagerFinder | None, secret: Path, fingerprints: tuple[str, ...]
) -> dict[str, Any]:
    """Query a manager that was found; return its statistics, or the reason for having none."""
    about: dict[str, Any] = {"name": one.name, "address": "", "problem": "it has no address"}
    try:
        known = secret.read_bytes().strip()
        if one.ssl and not fingerprints:
            fingerprints = tls.known_fingerprints(str(secret))
    except (OSError, ValueError) as error:
        return {**about, "problem": printable(error)}
    suits = None if finder is None else finder.matches
    for host, port in one.addresses:
        about["address"] = f"{host}:{port}"
        try:
            answer = query_status(host, port, known, fingerprints, suits, CONNECT_TIMEOUT_S)
        except (OSError, ValueError) as error:
            about["problem"] = printable(error)
            continue
        figures = {name: answer.get(name) for name in FIGURES}
        name = printable(answer.get("name") or one.name)
        return {
            **about,
            "name": name,
            "problem": "",
            **{k: v for k, v in figures.items() if isinstance(v, int)},
        }
    return about


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Show what has been found, for people."""
    lines = [("MANAGER", "ADDRESS", *map(str.upper, FIGURES), "")]
    lines += [
        (row["name"], row["address"], *(str(row.get(name, "-")) for name in FIGURES), row["problem"])
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([
            *(cell.ljust(width) for cell, width in zip(line[:2], widths, strict=False)),
            *(cell.rjust(width) for cell, width in zip(line[2:-1], widths[2:], strict=False)),
            line[-1],
        ]).rstrip()
        for line in lines
    )  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("address", nargs=-1, metavar="[HOST PORT | HOST:PORT]")
@click.option("-M", "--manager-name", metavar="NAME", help="Only managers that are called so; may be a regular expression that has to match the whole name.")  # fmt: skip
@click.option("--registry", type=click.Path(file_okay=False), metavar="DIR", help="Folder in which managers with a name are entered (default: what VINE_REGISTRY says, or the usual one).")  # fmt: skip
@click.option("--catalog", metavar="HOST:PORT", help="Look for managers also at a catalog server, or several, with commas (default: what CATALOG_HOST says, or none).")  # fmt: skip
@click.option("-P", "--password", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", help="File with the managers' secret.")  # fmt: skip
@click.option("--ssl", is_flag=True, help="Speak TLS with a manager whose fingerprint is in the file beside its secret, SECRET.fingerprint.")  # fmt: skip
@click.option("--ssl-fingerprint", multiple=True, metavar="SHA256", help="Speak TLS with a manager that has this certificate; may be repeated.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    address: tuple[str, ...],
    manager_name: str | None,
    registry: str | None,
    catalog: str | None,
    password: Path | None,
    ssl: bool,
    ssl_fingerprint: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say which managers there are, and how much each has to do. Without an address, those with a name are looked for."""
    secret, finder = password or secret_path(), None
    try:
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
    with ThreadPoolExecutor(AT_ONCE) as threads:
        rows = list(threads.map(lambda one: query_manager(one, finder, secret, fingerprints), found))
    if finder is not None and finder.problem:
        click.echo(printable(finder.problem), err=True)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif rows:
        click.echo(format_table(rows))
    elif finder is not None:
        click.echo(f"there is no manager {finder.description}")
    sys.exit(0 if rows and not any(row["problem"] for row in rows) else 1)


def main() -> None:
    """Run the command."""
    command()


if __name__ == "__main__":
    main()
