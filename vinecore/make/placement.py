"""Where the files of a rule are while it runs: copied to its sandbox, or in their place; without I/O."""

from __future__ import annotations

import os.path
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vinecore.make.rules import Rule, RuleError, RuleFile
from vinecore.protocol.amounts import parse_megabytes

# What options of sbatch, and lines for condor_submit, say about the size of a job.
MEMORY_OPTION = re.compile(r"(?:--mem[= ]|request_memory\s*=)\s*(\d+(?:\.\d+)? ?[KMGT]?B?)", re.IGNORECASE)
CORES_OPTION = re.compile(
    r"(?:(?:--cpus-per-task|--ntasks)[= ]|(?:^|\s)-[cn] ?|request_cpus\s*=)\s*(\d+)", re.IGNORECASE
)
DISK_OPTION = re.compile(r"request_disk\s*=\s*(\d+(?:\.\d+)? ?[KMGT]?B?)", re.IGNORECASE)


@dataclass(frozen=True)
class Placement:
    """The files of a rule, with respect to its sandbox.

    Attributes
    ----------
    runs_in_folder : bool
        Whether the command runs in the folder of the rules instead of a sandbox.
    inputs, outputs : tuple of (str, str)
        Paths with their names in the sandbox.
    in_place : tuple of str
        The targets that the command writes to their paths itself.
    """

    runs_in_folder: bool
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    in_place: tuple[str, ...]


def place_files(rule: Rule, folder: str, shared_folders: Sequence[str], *, runs_here: bool) -> Placement:
    """Decide where the files of a rule are.

    Parameters
    ----------
    rule : Rule
        The rule.
    folder : str
        The absolute folder to which its paths are relative.
    shared_folders : sequence of str
        Absolute folders that workers see under the same paths.
    runs_here : bool
        Whether the rule runs on this machine.

    Returns
    -------
    Placement
        The places.

    Raises
    ------
    RuleError
        A file has no place that the command could reach.
    """

    def is_shared(path: str) -> bool:
        full = os.path.normpath(os.path.join(folder, path))
        return any(full == one or full.startswith(one.rstrip("/") + "/") for one in shared_folders)

    runs_in_folder = is_shared("")

    def sandbox_name(file: RuleFile) -> str:
        """Return the name in the sandbox; "" for a file that stays in its place."""
        if runs_in_folder:
            if file.remote_name:
                msg = f"{file.path}->{file.remote_name}: the rule runs in the folder itself (--shared-fs), where files keep their names"
                raise RuleError(msg, rule.line)
            if is_shared(file.path) or runs_here:
                return ""
        name = file.remote_name or file.path
        if os.path.isabs(name) and not file.remote_name and (runs_here or is_shared(name)):
            return ""
        if os.path.isabs(name) or name.split("/")[0] == ".." or runs_in_folder:
            base = os.path.basename(file.path)
            msg = f"{file.path}: rules run in sandboxes on other machines, where this path leads nowhere: write {file.path}->{base} and {base} in the command, or, if workers see the same files, add --shared-fs {os.path.dirname(os.path.join(folder, file.path))}"
            raise RuleError(msg, rule.line)
        return name

    sources = [(file.path, sandbox_name(file)) for file in rule.sources]
    targets = [(file.path, sandbox_name(file)) for file in rule.targets]
    return Placement(
        runs_in_folder,
        tuple((path, name) for path, name in sources if name),
        tuple((path, name) for path, name in targets if name),
        tuple(path for path, name in targets if not name),
    )


def find_undeclared(rule: Rule) -> list[str]:
    """Return the words of a command that may be files which the rule does not name.

    Parameters
    ----------
    rule : Rule
        The rule.

    Returns
    -------
    list of str
        The words, which are not all names of files.
    """
    named = {name for file in (*rule.sources, *rule.targets) for name in (file.path, file.remote_name)}
    words = [os.path.normpath(word) for word in re.split(r"[\s;|&<>()'\"=`]+", rule.command) if word]

    def is_named(word: str) -> bool:
        return word in named or any(name and word.startswith(f"{name}/") for name in named)

    return list(dict.fromkeys(word for word in words if word != "." and not is_named(word)))


def job_size(batch_options: str) -> dict[str, int]:
    """Return the size of a job that options for a batch system ask for.

    Parameters
    ----------
    batch_options : str
        Options of ``sbatch``, or lines for ``condor_submit``.

    Returns
    -------
    dict of str to int
        Any of cores, memory (MB) and disk (MB).
    """
    found: dict[str, int] = {}
    # Of several values the batch system takes the last one.
    if cores := CORES_OPTION.findall(batch_options):
        found["cores"] = max(1, int(cores[-1]))
    if memory := MEMORY_OPTION.findall(batch_options):
        found["memory"] = max(1, parse_megabytes(memory[-1]))
    if disk := DISK_OPTION.findall(batch_options):
        # HTCondor counts disk in KiB if no unit is given.
        text = disk[-1] if disk[-1][-1].isalpha() else f"{disk[-1]}KiB"
        found["disk"] = max(1, parse_megabytes(text))
    return found
