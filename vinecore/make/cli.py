"""The command ``vine_make``."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from vinecore.factory.batch_system import BatchError
from vinecore.make.rules import RuleError
from vinecore.make.run import (
    BATCH_TYPES,
    OWN_WORKERS,
    MakeSettings,
    check_rules,
    clean,
    read_rules,
    run_rules,
)
from vinecore.protocol.amounts import parse_megabytes

TYPES = ("local", *BATCH_TYPES, OWN_WORKERS, "wq")
CLEANED = ("all", "intermediates", "outputs")
MAX_RETRIES = 100
# Options of Makeflow that do not exist here, with the alternative; those of one letter are written so.
REFUSED = {
    "jx": "vine_make reads plain rules only: run this file with makeflow --jx, or let a script write the rules",
    "json": "vine_make reads plain rules only: run this file with makeflow --json, or let a script write the rules",
    "jx-args": "vine_make reads plain rules only: run this file with makeflow --jx",
    "jx-define": "vine_make reads plain rules only: run this file with makeflow --jx",
    "jx-context": "vine_make reads plain rules only: run this file with makeflow --jx",
    "gc": "intermediate files stay: remove them with --clean=intermediates after the run",
    "mounts": "name the files by their own paths in the rules, or let a LOCAL rule copy or download them",
    "archive": "a complete rule is not run again by the same file; for results of other files use DaskVine(reuse=True)",
    "docker": "start workers in the container, or give them an environment: vine_factory --python-env, --wrapper",
    "docker-tar": "start workers in the container, or give them an environment: vine_factory --python-env, --wrapper",
    "singularity": "start workers in the container: vine_factory --wrapper, and vine_make -T vine",
    "umbrella-spec": "give workers an environment: vine_factory --python-env, and vine_make -T vine",
    "wrapper": "write the wrapper into the commands, and its file into the sources",
    "monitor": "the log of the run has no measurements: use vinecore.Manager, whose tasks have resources_measured",
    "email": "send the mail in the shell: vine_make FILE; mail ...",
    "send-environment": "export the variables in the file of rules: export NAME",
    "summary-log": "redirect the output: vine_make FILE > SUMMARY",
    "enforcement": "rules run in sandboxes that have their sources only: leave it out",
}
REFUSED_LETTERS = {"g": "gc", "m": "email", "f": "summary-log"}
# They have no meaning here, and no harm is done without them.
IGNORED = ("--sandbox", "--disable-afs-check", "-A", "--verbose", "--skip-file-check", "--safe-submit-mode")


class MakeCommand(click.Command):
    """A command that understands Makeflow's way to write optional values, and its other options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite ``-c`` and ``-cKIND``, and refuse what does not exist here."""
        return super().parse_args(ctx, [word for one in args for word in _rewrite(one)])


def _rewrite(word: str) -> list[str]:
    if word in ("-c", "--clean"):
        return ["--clean=all"]
    if re.fullmatch(r"-c[a-z]+", word):
        return [f"--clean={word[2:]}"]
    if word in IGNORED:
        return []
    name = word[2:].partition("=")[0] if word.startswith("--") else ""
    if re.match(r"-[a-z]", word):
        name = REFUSED_LETTERS.get(word[1], "")
    if name in REFUSED:
        msg = f"{word} does not exist here: {REFUSED[name]}"
        raise click.UsageError(msg)
    return [word]


class Amount(click.ParamType):  # type: ignore[type-arg]
    """An amount of memory or disk."""

    name = "megabytes"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Understand what the user has written."""
        try:
            return value if isinstance(value, int) else parse_megabytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(cls=MakeCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-T", "--batch-type", type=click.Choice(TYPES), default="local", show_default=True, help="Where rules run: on this machine, in jobs of a batch system, or on workers that connect by themselves (vine; wq means the same).")  # fmt: skip
@click.option("-j", "--max-local", type=click.IntRange(1), metavar="N", help="So many rules at once on this machine (default: what fits).")  # fmt: skip
@click.option("-J", "--max-remote", type=click.IntRange(1), metavar="N", help="So many rules at once elsewhere, and so many jobs (default: 100 jobs).")  # fmt: skip
@click.option("-r", "--retry-count", type=click.IntRange(0), metavar="N", help="Run a rule that has failed again, so often.")  # fmt: skip
@click.option("-R", "--retry", is_flag=True, help=f"Run a rule that has failed again, up to {MAX_RETRIES} times.")  # fmt: skip
@click.option("-l", "--makeflow-log", "log", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="The log of complete rules (default: FILE.vinelog).")  # fmt: skip
@click.option("--clean", "kind", type=click.Choice(CLEANED), help="Remove all targets and the log, or only some targets; also as -c and -cKIND.")  # fmt: skip
@click.option("-k", "--check", is_flag=True, help="Only check the file, its sources, and where files are.")
@click.option("--local-cores", "--cores", "local_cores", type=click.IntRange(1), metavar="N", help="Cores of this machine for rules (default: all).")  # fmt: skip
@click.option("--local-memory", "--memory", "local_memory", type=Amount(), metavar="MB", help="Memory of this machine for rules (default: all).")  # fmt: skip
@click.option("--local-disk", "--disk", "local_disk", type=Amount(), metavar="MB", help="Disk of this machine for rules (default: what is free).")  # fmt: skip
@click.option("-B", "--batch-options", default="", metavar="TEXT", help="Options for the batch system, before BATCH_OPTIONS of the rules.")  # fmt: skip
@click.option("--shared-fs", "shared_folders", multiple=True, type=click.Path(), metavar="DIR", help="A folder that workers see under the same path: its files are not sent, and rules in it run in their folder. May be repeated.")  # fmt: skip
@click.option("-p", "--port", type=click.IntRange(0, 65535), metavar="PORT", help="The port for workers that connect by themselves (default: 9123; 0 for any).")  # fmt: skip
@click.option("-Z", "--port-file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Take any free port and write it to a file.")  # fmt: skip
@click.option("-M", "-N", "--project-name", metavar="NAME", help="The name by which workers find this run: vine_worker -M NAME.")  # fmt: skip
@click.option("-P", "--password", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", help="File with the secret of the workers (default: this user's).")  # fmt: skip
@click.option("-X", "--chdir", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR", help="Go to a folder before.")  # fmt: skip
@click.option("-d", "--debug", is_flag=False, flag_value="all", metavar="SUBSYSTEM", help="Log all messages of the engine.")  # fmt: skip
def command(file: Path, batch_type: str, kind: str | None, check: bool, chdir: Path | None, debug: str | None, **options: Any) -> None:  # fmt: skip
    """Run a file of rules in Makeflow's plain form; a second run continues where the first one ended."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(message)s")
    if chdir is not None:
        file = file.absolute()
        os.chdir(chdir)
    settings = _settings(file, batch_type, **options)
    try:
        if check:
            rules = read_rules(settings)
            check_rules(rules, settings)
            click.echo(f"{file}: {len(rules.rules)} rules, no errors")
        elif kind is not None:
            for path in clean(read_rules(settings), settings, kind):
                click.echo(f"removed {path}")
        elif not run_rules(settings):
            sys.exit(1)
    except RuleError as error:
        msg = f"{file}: {error}"
        raise click.ClickException(msg) from None
    except BlockingIOError:
        msg = f"another vine_make runs {file}: its log {settings.log_path} is open"
        raise click.ClickException(msg) from None
    except (BatchError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _settings(
    file: Path,
    batch_type: str,
    *,
    retry: bool,
    retry_count: int | None,
    port: int | None,
    port_file: Path | None,
    password: Path | None,
    shared_folders: Sequence[str],
    **options: Any,
) -> MakeSettings:
    batch_type = OWN_WORKERS if batch_type == "wq" else batch_type
    if port is None:
        port = 9123 if batch_type == OWN_WORKERS and port_file is None else 0
    return MakeSettings(
        path=file,
        batch_type=batch_type,
        retries=(MAX_RETRIES if retry else 0) if retry_count is None else retry_count,
        port=port,
        port_file=port_file,
        password_file=password,
        shared_folders=tuple(shared_folders),
        say=click.echo,
        **options,
    )


def main() -> None:
    """Run the command."""
    command()
