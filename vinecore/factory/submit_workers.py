"""The command ``vine_submit_workers``: submits workers once, and leaves them to the batch system."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from vinecore.factory import condor, grid_engine, slurm
from vinecore.factory.batch_system import BatchError, PilotSpec
from vinecore.factory.cli import Megabytes
from vinecore.factory.pilot_script import run_batch_command, write_worker_zipapp
from vinecore.factory.settings import FactorySettings
from vinecore.protocol import tls
from vinecore.protocol.discovery.catalog import configured_servers, parse_servers
from vinecore.protocol.discovery.finder import ManagerFinder
from vinecore.protocol.discovery.registry import registry_directory
from vinecore.security.shared_secret import load_or_create_user_secret

WORKER_TIMEOUT_S = 900.0
MAX_ADDRESSES = 8
AUTOSIZE_WRAPPER = """\
sh -c 'export CORES=$(sed -n "s/^Cpus = //p" "$_CONDOR_MACHINE_AD")
export MEMORY=$(sed -n "s/^Memory = //p" "$_CONDOR_MACHINE_AD")
export DISK=$(($(sed -n "s/^Disk = //p" "$_CONDOR_MACHINE_AD") / 1024))
exec "$@"' vine_autosize"""
"""Tells a worker the size of its slot."""
AUTOSIZE_REQUESTS = """\
request_cpus = max({{{cores}, TARGET.TotalSlotCpus}})
request_memory = max({{{memory}, TARGET.TotalSlotMemory}})
request_disk = max({{{disk_kb}, TARGET.TotalSlotDisk}})"""
"""Ask for whole slots that are large enough."""
FILE = click.Path(exists=True, dir_okay=False)
WORKER_OPTIONS = (
    ("-d", "--debug", "SUBSYSTEM", "Have the workers say what happens, in detail."),
    ("-w", "--tcp-window-size", "SIZE", "For the workers."),
    ("-i", "--min-backoff", "S", "For the workers."),
    ("-b", "--max-backoff", "S", "For the workers."),
    ("-z", "--disk-threshold", "MB", "For the workers."),
    ("-A", "--arch", "ARCH", "For the workers."),
    ("-O", "--os", "OS", "For the workers."),
    ("-s", "--workdir", "PATH", "The folder on the nodes in which the workers make theirs."),
)
"""Options that the workers get as they are."""
OPTIONS = (
    (("-M", "--manager-name"), {"metavar": "NAME", "help": "Instead of an address: the name of the manager, or a regular expression that matches the whole name."}),
    (("-C", "--catalog"), {"metavar": "HOST:PORT", "help": "The catalog server that knows the manager (default: what CATALOG_HOST says)."}),
    (("-t", "--timeout"), {"type": click.FloatRange(min=1), "default": WORKER_TIMEOUT_S, "metavar": "S", "help": "A worker leaves after so long without work (default: 900)."}),
    (("-P", "--password"), {"type": FILE, "metavar": "FILE", "help": "File with the manager's secret (default: the user's)."}),
    (("--ssl",), {"is_flag": True, "help": "Speak TLS with a manager whose fingerprint is in the file beside its secret."}),
    (("--cores",), {"type": click.IntRange(min=1), "metavar": "N", "help": "Cores of each worker (default: 1)."}),
    (("--memory",), {"type": Megabytes(), "metavar": "MB", "help": "Memory of each worker, in MB, or with a unit, such as 4G (default: 1024)."}),
    (("--disk",), {"type": Megabytes(), "metavar": "MB", "help": "Disk of each worker, in MB, or with a unit, such as 20G (default: 1024)."}),
    (("--gpus",), {"type": click.IntRange(min=0), "metavar": "N", "help": "GPUs of each worker (default: 0)."}),
    (("--scratch-dir",), {"type": click.Path(file_okay=False), "metavar": "DIR", "help": "The folder on this machine for the files of the jobs (default: vine-workers-UID in the temporary folder)."}),
    (("-E", "--worker-options"), {"metavar": "TEXT", "default": "", "help": "Further options of vine_worker."}),
    (("--wrapper",), {"metavar": "COMMAND", "default": "", "help": "A command that runs the worker's command."}),
    (("--poncho-env", "--python-env"), {"type": FILE, "metavar": "ARCHIVE", "help": "An environment for the worker's own Python (slurm, uge: at a path that the nodes have, too)."}),
    (("-r", "--requirements"), {"multiple": True, "metavar": "EXPR", "help": "condor: a condition on the machine; may be repeated."}),
    (("--class-ad",), {"multiple": True, "metavar": "NAME=VALUE", "help": "condor: an attribute of the jobs; may be repeated."}),
    (("--autosize",), {"is_flag": True, "help": "condor: take whole slots, and offer all that they have."}),
    (("--spool",), {"is_flag": True, "help": "condor: have the schedd take a copy of all files."}),
    (("--docker-universe",), {"metavar": "IMAGE", "help": "condor: run the workers in this container image."}),
    (("--extra-file",), {"multiple": True, "type": FILE, "metavar": "FILE", "help": "condor: send this file with each worker; may be repeated."}),
    (("-j", "--job-array"), {"is_flag": True, "help": "uge: submit one array instead of single jobs."}),
    (("-p", "--parameters"), {"metavar": "TEXT", "default": "", "help": "Further options of condor_submit, sbatch or qsub."}),
    (("--dry-run",), {"is_flag": True, "help": "Print what would be submitted, and submit nothing."}),
)  # fmt: skip
CONDOR_ONLY = ("requirements", "class_ad", "autosize", "spool", "docker_universe", "extra_file")


class Submission(NamedTuple):
    """Workers to be submitted."""

    batch_type: str
    workers: int
    order: PilotSpec
    # further options of condor_submit
    words: tuple[str, ...] = ()
    spool: bool = False
    array: bool = False
    scratch_dir: str = ""


def with_options(command: Any) -> Any:
    """Give a command the options of both tables."""
    for flags, about in reversed(OPTIONS):
        command = click.option(*flags, **about)(command)
    for short, name, metavar, text in reversed(WORKER_OPTIONS):
        command = click.option(short, name, metavar=metavar, help=text)(command)
    return command


def split_words(words: Sequence[str], name: str | None) -> tuple[str, int, int]:
    """Understand HOST PORT N, HOST:PORT N, or N with a manager's name.

    Returns
    -------
    host, port, count
        The host is "" if there is a name.

    Raises
    ------
    ValueError
        It is none of them.
    """
    *where, count = words or [""]
    if not (count.isascii() and count.isdigit() and int(count) > 0):
        msg = f"{' '.join(words)!r} does not end with the number of workers: give HOST PORT N, HOST:PORT N, or -M NAME N"
        raise ValueError(msg)
    if name and where:
        msg = f"give either the manager's address, {' '.join(where)}, or its name, -M {name}"
        raise ValueError(msg)
    if name:
        return "", 0, int(count)
    host, _, port = ":".join(where).rpartition(":")
    if len(where) > 2 or not host or not port.isdigit() or not 0 < int(port) < 65536:
        msg = f"{' '.join(where)!r} is not an address: give HOST PORT or HOST:PORT, such as localhost:9123, or the manager's name with -M NAME"
        raise ValueError(msg)
    return host.strip("[]"), int(port), int(count)


def find_manager(name: str, catalog: str | None) -> tuple[tuple[str, ...], list[tuple[str, int]], str]:
    """Return the words by which a worker finds a manager, its present addresses, and where that looks.

    Raises
    ------
    ValueError
        The name is no regular expression, or the catalog no address.
    """
    words, folder = ["-M", name], os.environ.get("VINE_REGISTRY", "")
    servers = configured_servers(catalog or "")
    if folder:
        words += ["--registry", registry_directory(folder)]
    if servers:
        words += ["--catalog", servers]
    finder = ManagerFinder(name, registry_directory(folder), parse_servers(servers))
    addresses = [address for one in finder.find() for address in one.addresses]
    return tuple(words), addresses[:MAX_ADDRESSES], finder.description


def make_submission(batch_type: str, words: Sequence[str], given: dict[str, Any]) -> Submission:
    """Make a submission of what the user has typed.

    Raises
    ------
    ValueError
        Some of it makes no sense.
    """
    if batch_type != "condor":
        for name in CONDOR_ONLY:
            if given[name]:
                msg = f"--{name.replace('_', '-')} is for -T condor: leave it out"
                raise ValueError(msg)
    host, port, count = split_words(words, given["manager_name"])
    find: tuple[str, ...] = ()
    others: list[tuple[str, int]] = []
    if not host:
        find, others, places = find_manager(given["manager_name"], given["catalog"])
        if others:
            (host, port), *others = others
        else:
            click.echo(
                f"there is no manager {given['manager_name']} {places} yet: the workers look there, too, until one comes",
                err=True,
            )
    password = Path(given["password"]) if given["password"] else load_or_create_user_secret()[1]
    fingerprints = tls.known_fingerprints(str(password)) if given["ssl"] else ()
    name = f"vine-workers-{socket.gethostname().partition('.')[0]}-{secrets.token_hex(4)}"
    order = PilotSpec(
        make_settings(batch_type, given), host, port, password, name, fingerprints, tuple(others), find
    )
    parameters = tuple(shlex.split(given["parameters"])) if batch_type == "condor" else ()
    return Submission(batch_type, count, order, parameters, given["spool"], given["job_array"], given["scratch_dir"] or "")  # fmt: skip


def make_settings(batch_type: str, given: dict[str, Any]) -> FactorySettings:
    """Return the settings of the workers.

    Raises
    ------
    ValueError
        A value makes no sense.
    """
    extra = [
        word
        for _short, name, _metavar, _help in WORKER_OPTIONS
        if (value := given[name[2:].replace("-", "_")]) is not None
        for word in (name, value)
    ]
    cores, memory, disk = given["cores"] or 1, given["memory"] or 1024, given["disk"] or 1024
    lines, wrapper = given["parameters"], given["wrapper"]
    sizes = {"cores": cores, "memory": memory, "disk": disk, "gpus": given["gpus"] or 0}
    if batch_type == "slurm" and given["disk"] is None:
        # as with the factory: the nodes of many clusters declare no disk
        del sizes["disk"]
    if batch_type == "condor":
        texts = [text if text.startswith("+") else f"+{text}" for text in given["class_ad"]]
        if given["docker_universe"]:
            texts += ["universe = docker", f"docker_image = {given['docker_universe']}"]
        if given["autosize"]:
            texts.append(AUTOSIZE_REQUESTS.format(cores=cores, memory=memory, disk_kb=disk * 1024))
            wrapper, sizes = f"{wrapper} {AUTOSIZE_WRAPPER}".strip(), {}
        lines = "\n".join(texts)
    return FactorySettings().changed(
        timeout=given["timeout"],
        extra_options=shlex.join(extra) + " " + given["worker_options"],
        wrapper=wrapper,
        python_env=given["poncho_env"] or "",
        condor_requirements=given["requirements"],
        wrapper_input=given["extra_file"],
        batch_options=lines,
        **sizes,
    )


def check_command(name: str) -> None:
    """Make sure that a command of the batch system is there.

    Raises
    ------
    BatchError
        It is not.
    """
    if shutil.which(name) is None:
        msg = f"there is no command {name} here: use a machine from which jobs can be submitted"
        raise BatchError(msg)


def submit_condor(submission: Submission, dry_run: bool) -> str:
    """Submit workers to HTCondor; return what to print."""
    if not dry_run:
        check_command("condor_submit")
    base = Path(submission.scratch_dir or Path(tempfile.gettempdir()) / f"vine-workers-{os.getuid()}")
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    # jobs read their files when they start, so the folder stays
    folder = Path(tempfile.mkdtemp(prefix=f"{submission.order.factory}-", dir=base.absolute()))
    keep = False
    try:
        script = condor.write_pilot_files(folder, submission.order)
        text = condor.describe_jobs(folder, submission.workers, submission.order, script)
        if dry_run:
            words = ["condor_submit", *submission.words, *(["-spool"] if submission.spool else [])]
            return f"{shlex.join(words)} with\n\n{text}\nand the script\n\n{script.read_text()}"
        write_worker_zipapp(folder)
        description = folder / "pilots.submit"
        description.write_text(text)
        options = [*submission.words, *(["-spool"] if submission.spool else [])]
        names = condor.submit_description(description, options)
        keep = not submission.spool
    finally:
        if not keep:
            shutil.rmtree(folder)
    cluster = names[0].partition(".")[0]
    files = f"; their files are in {folder}" if keep else ""
    return f"{len(names)} job(s) submitted to cluster {cluster}{files}. Remove them with: condor_rm {cluster}"


def submit_script(submission: Submission, dry_run: bool) -> str:
    """Submit workers to Slurm or Grid Engine, which read a script; return what to print."""
    order, count = submission.order, submission.workers
    module: Any = slurm if submission.batch_type == "slurm" else grid_engine
    command = module.make_command(order)
    if submission.batch_type == "slurm":
        commands = [[*command, f"--array=0-{count - 1}"]]
    else:
        commands = [[*command, "-t", f"1-{count}"]] if submission.array else [command] * count
    if dry_run:
        hidden = order._replace(password_file=Path(os.devnull))
        lines = [shlex.join(command) for command in commands]
        return "\n".join([*lines, "", "with the script", "", module.make_script(hidden, "(the worker)\n")])
    check_command(command[0])
    with tempfile.TemporaryDirectory(prefix="vine-submit-") as folder:
        script = module.make_script(order, slurm.encode_worker(Path(folder)))
    said = [run_batch_command(*command, given=script) for command in commands]
    names = re.findall(r"^\d+", "\n".join(said), re.MULTILINE)
    if len(names) != len(commands):
        msg = f"cannot find a job id in the output of {commands[0][0]}: {said[-1].strip()}"
        raise BatchError(msg)
    remove = "scancel" if submission.batch_type == "slurm" else "qdel"
    return f"{count} job(s) submitted: {' '.join(names)}. Remove them with: {remove} {' '.join(names)}"


SUBMITTERS: dict[str, Callable[[Submission, bool], str]] = {
    "condor": submit_condor,
    "slurm": submit_script,
    "uge": submit_script,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="HOST PORT N | HOST:PORT N | -M NAME N")
@click.option("-T", "--batch-type", type=click.Choice([*SUBMITTERS]), required=True, help="The batch system.")
@with_options
def command(words: tuple[str, ...], batch_type: str, dry_run: bool, **given: Any) -> None:
    """Submit N workers for a manager to a batch system, once.

    They leave when they have been idle for some time. `vine_factory` submits workers as there is
    work, and removes them at the end.
    """
    try:
        submission = make_submission(batch_type, words, given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        click.echo(SUBMITTERS[batch_type](submission, dry_run))
    except (BatchError, OSError) as error:
        raise click.ClickException(str(error)) from None


def main() -> None:
    """Run the command."""
    command()


if __name__ == "__main__":
    main()
