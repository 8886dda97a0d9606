"""Workers as jobs of an HTCondor pool, by its command line: condor_submit, condor_q, condor_rm, and the user log.

No filesystem is shared with the nodes: each job brings the worker as one file, and the secret. The jobs of a factory have its name as an attribute,
so that they are found whatever was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vinecore.factory.adaptive import GONE, HELD, IDLE, RUNNING, JobStatus
from vinecore.factory.batch_system import (
    BatchError,
    BatchOptions,
    BatchSystem,
    PilotSpec,
    worker_command_line,
)
from vinecore.factory.pilot_script import (
    FIND_PYTHON,
    MOST_WORDS,
    UNPACK_PYTHON,
    environment_exports,
    run_batch_command,
    write_worker_zipapp,
)
from vinecore.protocol import temporary_folders
from vinecore.protocol.messages import PILOT_FEATURE_PREFIX

log = logging.getLogger("vinecore")

# What is taken out by force before it has ended leaves a starter behind that waits for 40 minutes for its shadow, and keeps
# its slot meanwhile: so late that a worker has handed over what it has, whatever else its machine does.
FORCE_S = 60.0
CLOSE_S = 90.0
JOB_LOG = "jobs.log"
AT_ONCE = 500  # jobs in one command line

SPOOLING_HOLD_CODE = 16  # why a job is held whose files are still on their way to the schedd
STATES = {1: IDLE, 2: RUNNING, 3: GONE, 4: GONE, 5: HELD, 6: RUNNING, 7: RUNNING}
EVENT = re.compile(r"(\d{3}) \((\d+)\.(\d+)\.\d+\)[^\n]*\n(.*?)^\.\.\.\n", re.MULTILINE | re.DOTALL)
TERMINATED, ABORTED = "005", "009"
RETURNED = re.compile(r"return value (-?\d+)")

PILOT_SCRIPT = """\
#!/bin/sh
# Starts a worker of {factory}; its argument is the number of this job.
umask 077
here=$PWD
chmod 600 vine_secret
{env}
{find}
exec {wrapper} "$python" "$here/vine_worker.pyz" --password "$here/vine_secret" --workspace "$here" \\
    --feature "{feature}/$1" {words}
"""


class HTCondor(BatchSystem):
    """Submits pilots to HTCondor.

    Parameters
    ----------
    scratch_dir : path or None
        Where a folder is made for all that pilots bring and leave; None for the system's place for temporary files.
    spool : bool
        Whether the schedd takes a copy of all files when a pilot is submitted.
    leftover : str
        The name of a factory whose jobs, as far as there are any, are taken out at the first look; "" for none.
    """

    IGNORED_SETTINGS = ("worker_binary",)

    def __init__(
        self, scratch_dir: str | Path | None = None, *, spool: bool = False, leftover: str = ""
    ) -> None:
        for command in ("condor_submit", "condor_q", "condor_rm"):
            if shutil.which(command) is None:
                msg = f"there is no command {command} here: use a machine from which HTCondor jobs can be submitted"
                raise BatchError(msg)
        if scratch_dir is not None:
            Path(scratch_dir).expanduser().mkdir(parents=True, exist_ok=True)
        base = None if scratch_dir is None else Path(scratch_dir).expanduser().absolute()
        temporary_folders.remove_abandoned(None if base is None else str(base))
        self.folder = Path(
            temporary_folders.create_folder("vine-condor-", None if base is None else str(base))
        )
        self._spool = spool
        self._log, self._read = self.folder / JOB_LOG, 0
        self._ends: dict[str, JobStatus] = {}
        self._live: set[str] = set()
        self._constraint = _job_constraint(leftover) if leftover else ""  # none has been submitted yet
        try:
            write_worker_zipapp(self.folder)
        except BaseException:
            temporary_folders.remove_folder(str(self.folder))
            raise

    @classmethod
    def default_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request of a small job: one core, 1024 MB of memory and of disk."""
        del settings
        return {"cores": 1, "memory": 1024, "disk": 1024, "gpus": 0}

    @classmethod
    def create(cls, options: BatchOptions) -> HTCondor:
        """Find HTCondor's commands."""
        return cls(options.scratch_dir, spool=options.condor_spool, leftover=options.leftover)

    def submit(self, count: int, order: PilotSpec) -> list[str]:
        """Submit a cluster of so many jobs."""
        script = write_pilot_files(self.folder, order)
        description = self.folder / "pilots.submit"
        description.write_text(describe_jobs(self.folder, count, order, script))
        self._constraint = _job_constraint(order.factory)
        names = submit_description(description, ["-spool"] if self._spool else [])
        self._live.update(names)
        return names

    def status(self) -> dict[str, JobStatus]:
        """Ask the queue, and read the log for those that are not in it any more."""
        if not self._constraint:
            return {}
        queue = self._queue()
        self._read_log()
        if self._spool and (gone := [name for name in self._live - queue.keys() if name not in self._ends]):
            self._read_history(len(gone))
        found: dict[str, JobStatus] = {}
        for name in sorted(self._live):
            about = queue.pop(name, None)
            state = GONE if about is None else STATES.get(about.get("JobStatus", 0), IDLE)
            if state == HELD and about is not None and about.get("HoldReasonCode") == SPOOLING_HOLD_CODE:
                state = IDLE
            if state != GONE:
                found[name] = JobStatus(state, _text_of(about or {}, "HoldReason"))
                continue
            self._live.discard(name)
            found[name] = self._final_status(name, about or {})
        strays = [name for name, about in queue.items() if about.get("JobStatus") not in (3, 4)]
        if strays:  # taken out before, or submitted by a command that did not come back
            self.remove(strays)
        return found

    def _queue(self) -> dict[str, dict[str, Any]]:
        said = run_batch_command("condor_q", "-json", "-constraint", self._constraint, "-attributes",
                   "ClusterId,ProcId,JobStatus,HoldReason,HoldReasonCode,RemoveReason").strip()  # fmt: skip
        try:
            return {f"{job['ClusterId']}.{job['ProcId']}": job for job in json.loads(said or "[]")}
        except (ValueError, TypeError, KeyError, RecursionError):
            msg = f"cannot parse the output of condor_q: {said[:MOST_WORDS]}"
            raise BatchError(msg) from None

    def _read_log(self) -> None:
        """Read what the log has got since the last time."""
        try:
            with open(self._log, "rb") as file:
                file.seek(self._read)
                news = file.read()
        except OSError:
            return
        end = news.rfind(b"\n...\n") + 5
        if end < 5:
            return
        self._read += end
        for kind, cluster, number, body in EVENT.findall(news[:end].decode(errors="replace")):
            name = f"{int(cluster)}.{int(number)}"
            first = body.strip().partition("\n")[0].strip()
            if kind == TERMINATED:
                code = RETURNED.search(body)
                clean = code is not None and int(code[1]) == 0
                self._ends[name] = JobStatus(
                    GONE, f"exit code {code[1]}" if code is not None else first, clean, ran=True
                )
            elif kind == ABORTED:
                self._ends[name] = JobStatus(GONE, first or "it was removed")

    def _read_history(self, count: int) -> None:
        """Ask the schedd what became of the last jobs, whose log it has kept to itself."""
        said = run_batch_command("condor_history", "-json", "-constraint", self._constraint, "-limit", str(2 * count), "-attributes",
                   "ClusterId,ProcId,ExitCode,RemoveReason", check=False).strip()  # fmt: skip
        try:
            jobs = json.loads(said or "[]")
        except (ValueError, RecursionError):
            return
        for job in jobs:
            name, code = f"{job.get('ClusterId')}.{job.get('ProcId')}", job.get("ExitCode")
            if name in self._live and code is not None:
                self._ends[name] = JobStatus(GONE, f"exit code {code}", code == 0, ran=True)
            elif name in self._live:
                self._ends[name] = JobStatus(GONE, _text_of(job, "RemoveReason"))

    def _final_status(self, name: str, about: dict[str, Any]) -> JobStatus:
        end = self._ends.pop(name, None) or JobStatus(
            GONE, _text_of(about, "RemoveReason") or "it has left the queue"
        )
        path = self.folder / f"pilot-{name}.err"
        if path.exists():
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - MOST_WORDS))
                words = file.read().decode(errors="replace").strip().splitlines()
            path.unlink()
            if words and end.reason.startswith("exit code") and not end.exited_cleanly:
                end = end._replace(reason=f"{end.reason}: {words[-1]}")
        return end

    def remove(self, names: Sequence[str]) -> None:
        """Take jobs out; a later look takes out those that are still there."""
        self._live.difference_update(names)
        for start in range(0, len(names), AT_ONCE):
            run_batch_command("condor_rm", *names[start : start + AT_ONCE], check=False)

    def close(self) -> None:
        """Take all jobs of this factory out, and wait until they are."""
        if self._constraint and not self._wait_until_queue_empty():
            log.error(
                "some pilots may still be in the queue; remove them with: condor_rm -constraint %s",
                shlex.quote(self._constraint),
            )
        temporary_folders.remove_folder(str(self.folder))

    def _wait_until_queue_empty(self) -> bool:
        begun, forced = time.monotonic(), False
        while time.monotonic() < begun + CLOSE_S:
            try:
                queue = self._queue()
                if not queue:
                    return True
                if any(about.get("JobStatus") != 3 for about in queue.values()):
                    run_batch_command("condor_rm", "-constraint", self._constraint, check=False)
                elif not forced and time.monotonic() > begun + FORCE_S:
                    forced = True
                    run_batch_command("condor_rm", "-forcex", "-constraint", self._constraint, check=False)
            except BatchError as error:
                log.warning("%s", error)
            time.sleep(0.3)
        return False


def write_pilot_files(folder: Path, order: PilotSpec) -> Path:
    """Write the secret and the script of pilots to the folder that has the worker; return the script."""
    descriptor = os.open(folder / "vine_secret", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(order.password_file.read_bytes())
    text = make_script(order)
    # pilots in the queue may have another one
    script = folder / f"vine_pilot-{hashlib.sha256(text.encode()).hexdigest()[:12]}.sh"
    script.write_text(text)
    script.chmod(0o700)
    return script


def make_script(order: PilotSpec) -> str:
    """Return the script of a pilot."""
    settings = order.settings
    archive = shlex.quote(os.path.basename(settings.python_env))
    return PILOT_SCRIPT.format(
        factory=order.factory,
        env=environment_exports(settings),
        find=f"{UNPACK_PYTHON}\nrm -f {{archive}}".format(archive=archive)
        if settings.python_env
        else FIND_PYTHON,
        wrapper=settings.wrapper,
        feature=f"{PILOT_FEATURE_PREFIX}{order.factory}",
        words=shlex.join(worker_command_line(order)),
    )


def describe_jobs(folder: Path, count: int, order: PilotSpec, script: Path) -> str:
    """Return the description of so many jobs for condor_submit.

    Parameters
    ----------
    folder
        Where the files of the pilots are.
    count, order
        How many pilots, and their settings.
    script
        The script of the pilots.
    """
    settings = order.settings
    inputs = [folder / "vine_worker.pyz", folder / "vine_secret"]
    own = [settings.python_env] if settings.python_env else []
    inputs += [Path(path).expanduser().absolute() for path in (*own, *settings.wrapper_input)]
    lines = {
        "universe": "vanilla",
        "executable": script,
        "arguments": "$(ClusterId).$(ProcId)",
        "transfer_executable": "true",
        "transfer_input_files": ", ".join(map(str, inputs)),
        "should_transfer_files": "YES",
        "when_to_transfer_output": "ON_EXIT",
        "transfer_output_files": '""',
        "error": folder / "pilot-$(ClusterId).$(ProcId).err",
        "log": folder / JOB_LOG,
        "request_cpus": settings.cores or 1,
        "request_memory": settings.memory or 1024,
        "request_disk": (settings.disk or 1024) * 1024,
        "notification": "never",
        "leave_in_queue": "false",
        "batch_name": order.factory,
        "+VineFactory": f'"{order.factory}"',
    }
    if settings.gpus:
        lines["request_gpus"] = settings.gpus
    requirements = [
        *settings.condor_requirements,
        *(f'Machine != "{host}"' for host in settings.workers_blocked),
    ]
    if requirements:
        lines["requirements"] = " && ".join(f"({text})" for text in requirements)
    text = "\n".join(f"{name} = {value}" for name, value in lines.items())
    return f"{text}\n{settings.batch_options}\nqueue {count}\n"


def submit_description(description: Path, options: Sequence[str]) -> list[str]:
    """Submit the jobs of a description, and return their ids.

    Raises
    ------
    BatchError
        HTCondor has rejected them, or its reply is not understood.
    """
    said = run_batch_command("condor_submit", "-terse", *options, str(description))
    found = re.search(r"(\d+)\.(\d+) - (\d+)\.(\d+)", said)
    if found is None:
        msg = f"cannot find a job id in the output of condor_submit: {said[-MOST_WORDS:]}"
        raise BatchError(msg)
    cluster, first, _, last = map(int, found.groups())
    return [f"{cluster}.{number}" for number in range(first, last + 1)]


def _text_of(about: dict[str, Any], attribute: str) -> str:
    """Return a text; an attribute that a job does not have may be missing or null."""
    return str(about.get(attribute) or "")[:MOST_WORDS]


def _job_constraint(factory: str) -> str:
    """Return the constraint that selects the jobs of a factory."""
    return f'VineFactory == "{factory}"'
