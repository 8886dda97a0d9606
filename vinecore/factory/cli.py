"""The command ``vine_factory``."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import vinecore
from vinecore.factory.batch_system import BatchError
from vinecore.factory.batch_types import BATCH_SYSTEMS, UNSUPPORTED_BATCH_TYPES
from vinecore.factory.factory import Factory
from vinecore.factory.settings import IGNORED_SETTINGS, WORKER_OPTIONS, worker_options
from vinecore.protocol import MB, debug_log
from vinecore.protocol.amounts import parse_megabytes

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("vinecore")

FLAGS_WITHOUT_EFFECT = ("autosize", "disable-afs-check", "run-factory-as-manager")


def _address(words: Sequence[str]) -> str:
    where = ":".join(words)
    host, _, port = where.rpartition(":")
    if len(words) == 1 and not port.isdigit():
        msg = (
            f"{where!r} is not an address: give HOST PORT or HOST:PORT, or the manager's name with -M {where}"
        )
        raise click.UsageError(msg)
    if len(words) > 2 or not host or not port.isdigit():
        msg = f"{' '.join(words)!r} is not an address: give HOST PORT or HOST:PORT, such as localhost:9123"
        raise click.UsageError(msg)
    return where


class Megabytes(click.ParamType):  # type: ignore[type-arg]
    """An amount of memory or disk."""

    name = "megabytes"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Understand what the user has written."""
        try:
            return value if isinstance(value, int) else parse_megabytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _pairs(_context: Any, _option: Any, values: Sequence[str]) -> dict[str, str] | None:
    for value in values:
        if "=" not in value:
            msg = f"{value!r}: give VAR=VALUE"
            raise click.BadParameter(msg)
    return {name: text for name, _, text in (value.partition("=") for value in values)} or None


def _with_accepted_options(command: Any) -> Any:
    """Give the command the options of TaskVine's that the worker has, or that change nothing here."""
    for name, has_value in WORKER_OPTIONS.items():
        about: dict[str, Any] = {"metavar": "VALUE"} if has_value else {"is_flag": True}
        text = f"As --{name.replace('debug-workers', 'debug')} of vine_worker."
        command = click.option(f"--{name}", help=text, **about)(command)
    for name in IGNORED_SETTINGS:
        short = {"foremen-name": ("-F",)}.get(name, ())
        about = {"is_flag": True} if name in FLAGS_WITHOUT_EFFECT else {}
        command = click.option(f"--{name}", *short, hidden=True, **about)(command)
    return command


def _split_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a factory among the options; say which others change nothing."""
    words = worker_options({name: options.pop(name.replace("-", "_")) for name in WORKER_OPTIONS})
    options["extra_options"] = f"{words} {options['extra_options'] or ''}".strip() or None
    for name, reason in IGNORED_SETTINGS.items():
        if options.pop(name.replace("-", "_")):
            log.warning("--%s has no effect: %s", name, reason)
    return {name: value for name, value in options.items() if value not in (None, ())}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_with_accepted_options
@click.argument("address", nargs=-1, metavar="HOST PORT | HOST:PORT | -M NAME")
@click.option(
    "-T",
    "--batch-type",
    metavar="TYPE",
    required=True,
    help=f"Where workers run: {', '.join(BATCH_SYSTEMS)}.",
)
@click.option(
    "-M",
    "--manager-name",
    metavar="NAME",
    help="Instead of an address: for all managers that are called so, wherever they are; NAME may be a regular expression that has to match the whole name.",
)
@click.option(
    "--registry",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Folder in which managers with a name are entered (default: what VINE_REGISTRY says, or the usual one).",
)
@click.option(
    "--catalog",
    metavar="HOST:PORT",
    help="Look for managers also at a catalog server, or several, with commas (default: what CATALOG_HOST says, or none).",
)
@click.option(
    "-w",
    "--min-workers",
    type=int,
    metavar="N",
    help="So many at least (default: 5; local: 1; dask: as --max-workers).",
)
@click.option(
    "-W",
    "--max-workers",
    type=int,
    metavar="N",
    help="So many at most (default: 100; local: as --min-workers; dask: one on each node).",
)
@click.option(
    "--workers-per-cycle",
    type=int,
    metavar="N",
    help="Submit so many in one period at most (default: 0, as many as are needed).",
)
@click.option(
    "--factory-period", type=float, metavar="S", help="Seconds between two looks (default: 5; local: 0.2)."
)
@click.option(
    "-t",
    "--timeout",
    type=float,
    metavar="S",
    help="A worker leaves after so long without work (default: 300).",
)
@click.option(
    "--factory-timeout",
    type=float,
    metavar="S",
    help="End when there was no work, or no manager, for so long (default: never).",
)
@click.option(
    "--wall-time",
    type=float,
    metavar="S",
    help="A worker ends after so long, having handed over what only it has; it is replaced if there is work (default: no limit).",
)
@click.option("--cores", type=int, metavar="N", help="Cores of each worker (condor, slurm: 1).")
@click.option(
    "--memory",
    type=Megabytes(),
    metavar="MB",
    help="Memory of each worker, in MB, or with a unit, such as 2GB (condor, slurm: 1024).",
)
@click.option(
    "--disk",
    type=Megabytes(),
    metavar="MB",
    help="Disk of each worker, in MB, or with a unit, such as 20GB (condor: 1024; slurm: what is free).",
)
@click.option("--gpus", type=int, metavar="N", help="GPUs of each worker (condor, slurm: 0).")
@click.option(
    "--tasks-per-worker",
    type=int,
    metavar="N",
    help="Tasks that one worker is counted for (default: one for each core).",
)
@click.option(
    "-c",
    "--capacity",
    is_flag=True,
    default=None,
    help="Start no more workers than the manager can keep busy.",
)
@click.option(
    "--condor-requirements",
    multiple=True,
    metavar="EXPR",
    help="A condition on the machine; may be repeated, then all have to hold.",
)
@click.option(
    "--condor-spool", is_flag=True, help="Have HTCondor take a copy of all files when a pilot is submitted."
)
@click.option(
    "--slurm-shared",
    is_flag=True,
    help="Slurm's nodes find the archive of --python-env at the same path as this machine.",
)
@click.option(
    "--dask-scheduler",
    metavar="ADDRESS",
    help="The scheduler of the Dask cluster whose nodes are used: tcp://HOST:PORT, tls://HOST:PORT, or the path of its file "
    "(default: scheduler-address of dask's configuration).",
)
@click.option(
    "-B",
    "--batch-options",
    metavar="TEXT",
    help="For the batch system as it is: lines of a submit file (condor: '+JobFlavour = \"longlunch\"'), or options of sbatch (slurm: '--partition=short').",
)
@click.option(
    "--env",
    multiple=True,
    callback=_pairs,
    metavar="VAR=VAL",
    help="A variable of the workers' environment; may be repeated.",
)
@click.option(
    "--factory-name",
    metavar="NAME",
    help="What this factory is called: when it starts it takes out what one with the same name has left in the queue.",
)
@click.option(
    "--feature", multiple=True, metavar="NAME", help="What workers say that they have; may be repeated."
)
@click.option("--wrapper-input", multiple=True, metavar="FILE", type=click.Path(exists=True, dir_okay=False),
              help="A file that the wrapper needs (condor); may be repeated.")  # fmt: skip
@click.option("--parent-death", is_flag=True, help="End when the process that has started this is gone.")
@click.option("--wrapper", metavar="COMMAND", help="A command that runs the worker's command.")
@click.option("--worker-binary", metavar="FILE", help="The program that is started as the worker (local).")
@click.option("--python-env", "--poncho-env", "--python-package", metavar="ARCHIVE",
              type=click.Path(exists=True, dir_okay=False), help="An environment for the worker's own Python.")  # fmt: skip
@click.option(
    "-P",
    "--password",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="File with the manager's secret.",
)
@click.option(
    "--ssl",
    is_flag=True,
    help="Speak TLS with a manager whose fingerprint is in the file beside its secret, SECRET.fingerprint; so do the workers.",
)
@click.option(
    "--ssl-fingerprint",
    multiple=True,
    metavar="SHA256",
    help="Speak TLS with a manager that has this certificate; may be repeated.",
)
@click.option("-E", "--extra-options", metavar="TEXT", help="Further options of vine_worker.")
@click.option(
    "-S",
    "--scratch-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to keep files (default: the temporary folder).",
)
@click.option("-C", "--config-file", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
              help="A JSON file with settings, named as these options; read again when it changes.")  # fmt: skip
@click.option(
    "-d",
    "--debug",
    is_flag=False,
    flag_value="all",
    metavar="[SUBSYSTEM]",
    help="Say what happens, in detail; all subsystems are the same.",
)
@click.option(
    "-o",
    "--debug-file",
    default="",
    metavar="FILE",
    help="Write to this file what the factory says (default: standard error).",
)
@click.option(
    "-O",
    "--debug-file-size",
    "--debug-rotate-max",
    type=Megabytes(),
    default=0,
    metavar="MB",
    help="Rename this file to FILE.1 when it is so large, and begin a new one (default: 0, never).",
)
@click.version_option(
    vinecore.__version__, "-v", "--version", prog_name="vine_factory", message="%(prog)s %(version)s"
)
def command(
    address: tuple[str, ...],
    batch_type: str,
    manager_name: str | None,
    debug: str | None,
    debug_file: str,
    debug_file_size: int,
    parent_death: bool,
    **options: Any,
) -> None:
    """Keep workers running for a manager, and remove them all at the end."""
    is_debug, words = debug_log.separate_subsystem(debug, list(address))
    address = tuple(words)
    try:
        debug_log.start_log("vine_factory", is_debug, debug_file, debug_file_size * MB)
    except OSError as error:
        msg = f"the log cannot be written to {debug_file}: {error.strerror}"
        raise click.UsageError(msg) from None
    if batch_type not in BATCH_SYSTEMS:
        known = UNSUPPORTED_BATCH_TYPES.get(batch_type)
        msg = f"-T {batch_type}: {known or 'there is no such batch system'}; there are {', '.join(BATCH_SYSTEMS)}"
        raise click.UsageError(msg)
    if bool(manager_name) + bool(address) > 1 or not (manager_name or address or options["config_file"]):
        msg = "give either the manager's address, HOST PORT or HOST:PORT, or its name, -M NAME"
        raise click.UsageError(msg)
    given = _split_options(options)
    with ExitSignals() as exit_signals:
        try:
            where = _address(address) if address else None
            factory = Factory(batch_type, manager_host_port=where, manager_name=manager_name, **given)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        try:
            run(factory, exit_signals, parent=os.getppid() if parent_death else None)
        except BatchError as error:
            raise click.ClickException(str(error)) from None


class ExitSignals:
    """Notes signals that end a factory, from before the factory exists, and tells the factory.

    A context: after it the handlers are those from before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_received = False
        self._ended: threading.Event | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def end_on_signal(self, ended: threading.Event) -> None:
        """Have a signal set an event, also one that has come before."""
        with self._lock:
            self._ended = ended
            if self._is_received:
                ended.set()

    def _on_signal(self, number: int, _frame: Any) -> None:
        # In a thread of its own, because this one may hold the lock of what it waits for.
        threading.Thread(target=self._note, args=(number,), name="vine-signal", daemon=True).start()

    def _note(self, number: int) -> None:
        log.info("got %s", signal.Signals(number).name)
        with self._lock:
            self._is_received = True
            if self._ended is not None:
                self._ended.set()


def run(factory: Factory, exit_signals: ExitSignals, parent: int | None = None) -> None:
    """Keep a factory until it ends, a signal says so, or its parent is gone."""
    exit_signals.end_on_signal(factory.ended)
    if factory.ended.is_set():
        return
    with factory:
        while not factory.ended.wait(None if parent is None else 1.0):
            if os.getppid() != parent:
                log.info("ends: the process that has started this is gone")
                break
        if factory.exit_reason:
            log.info("ends: %s", factory.exit_reason)
        log.info("removing all workers")


def main() -> None:
    """Run the command."""
    command()


if __name__ == "__main__":
    main()
