"""Workers as jobs of Slurm, by its command line: sbatch, squeue, scancel, sacct where there is accounting, and sbcast for an environment.

No filesystem is shared with the nodes: the worker and the secret are in the batch script, which sbatch reads from its standard input and Slurm shows to
nobody but its owner and its operators. The jobs of a factory have its name, so that they are found whatever was interrupted.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from vinecore.protocol.messages import PILOT_FEATURE_PREFIX

log = logging.getLogger("vinecore")

CLOSE_S = 90.0
MARGIN_S = 30  # so much earlier than the end of its job a pilot has left
AT_ONCE = 500  # jobs in one command line
MOST_IN_ARRAY = 1001  # unless Slurm says otherwise
SENDING_S = 20.0  # for how long environments are sent before the next look
ARRIVING_S = 900  # for how long a pilot waits for its environment

COLUMNS = {"JobArrayID": 40, "JobID": 15, "State": 20, "exit_code": 12, "Reason": 200, "Comment": 400}
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED"}
WORKING = {"RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}  # fmt: skip
HOLDING = {"REQUEUE_HOLD", "SPECIAL_EXIT"}
HELD_REASON = re.compile(r"held|JobHold", re.IGNORECASE)
REASONS = {
    "JobHeldUser": "its owner holds it (scontrol hold)",
    "JobHeldAdmin": "an administrator holds it",
    "BOOT_FAIL": "its node could not be started",
    "CANCELLED": "it was cancelled (scancel)",
    "DEADLINE": "its deadline is over",
    "NODE_FAIL": "its node has failed",
    "OUT_OF_MEMORY": "it has used more memory than --memory asks for",
    "PREEMPTED": "others were preferred",
    "TIMEOUT": "its time limit is over",
}  # fmt: skip
NEVER_RAN = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "REVOKED"}
COMMENT_PREFIX = "vine: "  # how a pilot begins its job's comment

SCRIPT = """\
#!/bin/sh
# Starts a worker of {factory}.
umask 077
archive={archive}
place=${{TMPDIR:-/tmp}}
[ -d "$place" ] && [ -w "$place" ] || place=/tmp
# who holds the lock is alive; what others have left who were killed is removed
new=$(mktemp -d "$place/vine-new-XXXXXXXX") || exit 125
exec 9> "$new/alive" && flock 9
here=$place/vine-pilot-${{new##*-}}
mv "$new" "$here" && cd "$here" || exit 125
for left in "$place"/vine-pilot-*; do
    [ ! -O "$left/alive" ] || flock --nonblock "$left/alive" rm -rf "$left"
done
ending=
trap 'cd /; rm -rf "$here"{remove}' EXIT
trap 'ending=1' TERM INT HUP
base64 -d > vine_worker.pyz <<'{mark}'
{worker}{mark}
base64 -d > vine_secret <<'{mark}'
{secret}{mark}
{arrive}
(
{env}
{find}
{wall}
exec {wrapper} "$python" "$here/vine_worker.pyz" --password "$here/vine_secret" --workspace "$here" \\
    --feature "{feature}/${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" $wall {words}
) 2> words
code=$?
if [ "$code" != 0 ] && [ -z "$ending" ]; then
    said=$(tail -n 1 words | LC_ALL=C tr -cd '[:print:]' | cut -c 1-300)
    scontrol update "JobId=$SLURM_JOB_ID" "Comment={said}$said" >/dev/null 2>&1
fi
exit "$code"
"""
WALL_TIME_SCRIPT = """\
wall=
left=$((${{SLURM_JOB_END_TIME:-0}} - $(date +%s) - {spare}))
[ "$left" -lt 1 ] || wall="--wall-time $left"
"""
WAIT_FOR_ENVIRONMENT_SCRIPT = """\
waited=0
while [ "$(wc -c 2>/dev/null < "$archive")" != {size} ]; do
    [ -z "$ending" ] || exit 0
    if [ "$waited" -ge {patience} ]; then
        scontrol update "JobId=$SLURM_JOB_ID" "Comment={said}the environment has not arrived in {patience} s" >/dev/null 2>&1
        exit 126
    fi
    waited=$((waited + 1))
    sleep 1
done"""


class _SqueueRow(NamedTuple):
    """A row of squeue."""

    number: str
    state: str
    code: str
    reason: str
    comment: str


class Slurm(BatchSystem):
    """Submits pilots to Slurm.

    Parameters
    ----------
    shared : bool
        Whether the nodes find the archive of ``python_env`` at the same path as this machine; if not, each pilot is sent a copy, by sbcast.
    leftover : str
        The name of a factory whose jobs, as far as there are any, are taken out at the first look; "" for none.
    """

    IGNORED_SETTINGS = ("condor_requirements", "worker_binary", "wrapper_input")

    def __init__(self, *, shared: bool = False, leftover: str = "") -> None:
        for command in ("sbatch", "squeue", "scancel"):
            if shutil.which(command) is None:
                msg = f"there is no command {command} here: use a machine from which Slurm jobs can be submitted"
                raise BatchError(msg)
        self._shared = shared
        self._factory = leftover  # "": none has been submitted yet
        self._mark = secrets.token_hex(8)
        self._live: set[str] = set()
        self._most = 0
        self._archive, self._sent = "", set[str]()
        with tempfile.TemporaryDirectory(prefix="vine-slurm-") as folder:
            self._worker = encode_worker(Path(folder))

    @classmethod
    def default_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request of a small job: one core and 1024 MB of memory."""
        del settings
        return {"cores": 1, "memory": 1024, "gpus": 0}

    @classmethod
    def create(cls, options: BatchOptions) -> Slurm:
        """Find Slurm's commands."""
        return cls(shared=options.slurm_shared, leftover=options.leftover)

    def submit(self, count: int, order: PilotSpec) -> list[str]:
        """Submit an array of so many jobs, or several where Slurm takes no array of that size."""
        self._archive = find_archive(order)
        sent = "" if self._shared else self._environment_path("$SLURM_JOB_ID")
        script, command = make_script(order, self._worker, sent), make_command(order)
        self._factory = order.factory
        names: list[str] = []
        while len(names) < count:
            size = min(count - len(names), self._most_in_array())
            try:
                said = run_batch_command(*command, f"--array=0-{size - 1}", given=script)
            except BatchError as error:
                if not names:
                    raise
                log.warning("%d of %d pilots could not be submitted: %s", count - len(names), count, error)
                break
            found = re.match(r"(\d+)(;|$)", said.strip())
            if found is None:
                msg = f"cannot find a job id in the output of sbatch: {said[-MOST_WORDS:]}"
                raise BatchError(msg)
            names += [f"{found[1]}_{number}" for number in range(size)]
            self._live.update(names)
        return names

    def _most_in_array(self) -> int:
        if not self._most:
            said = re.search(
                r"MaxArraySize\s*=\s*(\d+)", run_batch_command("scontrol", "show", "config", check=False)
            )
            self._most = max(1, int(said[1]) if said else MOST_IN_ARRAY)
        return self._most

    def _environment_path(self, number: str) -> str:
        """Where a pilot finds the environment that it was sent."""
        return f"/tmp/vine-{self._mark}-{number}.env"  # noqa: S108 - no other user can guess the name

    def status(self) -> dict[str, JobStatus]:
        """Ask the queue, and the accounting for those that are not in it any more."""
        if not self._factory:
            return {}
        queue = self._queue("--states=all")
        ends = self._accounting_status([name for name in self._live if name not in queue])
        found: dict[str, JobStatus] = {}
        for name in sorted(self._live):
            found[name] = job = (
                _job_status(queue[name])
                if name in queue
                else ends.get(name) or JobStatus(GONE, "it has left the queue")
            )
            if job.state == GONE:
                self._live.discard(name)
        strays = [
            name
            for name, row in queue.items()
            if name not in found and _job_status(row).state != GONE and row.state != "COMPLETING"
        ]
        if strays:  # taken out before, or submitted by a command that did not come back
            self.remove(strays)
        if self._archive and not self._shared:
            self._broadcast_environment(
                {row.number: row.state for row in (queue[name] for name in self._live if name in queue)}
            )
        return found

    def _queue(self, *options: str) -> dict[str, _SqueueRow]:
        columns = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
        said = run_batch_command(
            "squeue",
            "--noheader",
            "--array",
            f"--user={os.getuid()}",
            f"--name={self._factory}",
            *options,
            "--Format",
            columns,
        )
        rows = {}
        for line in said.splitlines():
            words, at = [], 0
            for width in COLUMNS.values():
                words.append(line[at : at + width].strip())
                at += width
            rows[words[0]] = _SqueueRow(*words[1:])
        return rows

    def _accounting_status(self, names: Sequence[str]) -> dict[str, JobStatus]:
        """Query the accounting for jobs that Slurm itself has forgotten."""
        ends: dict[str, JobStatus] = {}
        if shutil.which("sacct") is None:
            return ends
        for start in range(0, len(names), AT_ONCE):
            said = run_batch_command("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode",
                       "--jobs", ",".join(names[start : start + AT_ONCE]), check=False)  # fmt: skip
            for line in said.splitlines():
                name, state, code = [*line.split("|"), "", ""][:3]
                job = _job_status(_SqueueRow(name, state.partition(" ")[0], code, "", ""))
                if job.state == GONE:
                    ends[name] = job
        return ends

    def _broadcast_environment(self, states: dict[str, str]) -> None:
        """Send the environment to pilots that have started, as many as there is time for."""
        self._sent &= {number for number, state in states.items() if state == "RUNNING"}
        until = time.monotonic() + SENDING_S
        for number, state in states.items():
            if state != "RUNNING" or number in self._sent or time.monotonic() > until:
                continue
            try:
                run_batch_command(
                    "sbcast",
                    "--force",
                    "--preserve",
                    f"--jobid={number}",
                    self._archive,
                    self._environment_path(number),
                )
                self._sent.add(number)
            except (BatchError, OSError) as error:
                log.warning("the environment cannot be sent to job %s: %s", number, error)

    def remove(self, names: Sequence[str]) -> None:
        """Take jobs out; a later look takes out those that are still there."""
        self._live.difference_update(names)
        for start in range(0, len(names), AT_ONCE):
            run_batch_command("scancel", *names[start : start + AT_ONCE], check=False)

    def close(self) -> None:
        """Take all jobs of this factory out, and wait until they are."""
        if self._factory and not self._wait_until_queue_empty():
            log.error(
                "some pilots may still be in the queue; remove them with: scancel --name=%s", self._factory
            )

    def _wait_until_queue_empty(self) -> bool:
        deadline = time.monotonic() + CLOSE_S
        while time.monotonic() < deadline:
            try:
                queue = self._queue()
                if not queue:
                    return True
                if any(row.state != "COMPLETING" for row in queue.values()):
                    run_batch_command(
                        "scancel", f"--user={os.getuid()}", f"--name={self._factory}", check=False
                    )
            except BatchError as error:
                log.warning("%s", error)
            time.sleep(0.3)
        return False


def encode_worker(folder: Path) -> str:
    """Make the worker in a folder, and return it as base64."""
    return base64.encodebytes(write_worker_zipapp(folder).read_bytes()).decode()


def find_archive(order: PilotSpec) -> str:
    """Return the absolute path of the environment of pilots; "" without one."""
    path = order.settings.python_env
    return os.path.abspath(os.path.expanduser(path)) if path else ""


def make_command(order: PilotSpec) -> list[str]:
    """Return the command that submits pilots, without their number."""
    settings = order.settings
    command = [
        "sbatch", "--parsable", f"--job-name={order.factory}", "--output=/dev/null", "--error=/dev/null", "--chdir=/tmp", "--requeue",
        "--nodes=1", "--ntasks=1", f"--cpus-per-task={settings.cores or 1}", f"--mem={settings.memory or 1024}M",
    ]  # fmt: skip
    if settings.disk:
        command.append(f"--tmp={settings.disk}M")
    if settings.gpus:
        command.append(f"--gres=gpu:{settings.gpus}")
    if settings.workers_blocked:
        command.append(f"--exclude={','.join(settings.workers_blocked)}")
    return command + shlex.split(settings.batch_options)


def make_script(order: PilotSpec, worker: str, sent_archive: str = "") -> str:
    """Return the script of a pilot.

    Parameters
    ----------
    order
        Its settings, and its manager.
    worker
        The worker, as base64.
    sent_archive
        The path at which a pilot will find the environment that it is sent; "" for the path of the
        archive here.
    """
    settings, archive, arrive, find, remove = order.settings, "''", "", FIND_PYTHON, ""
    own = find_archive(order)
    if own:
        find = "unset PYTHONPATH PYTHONHOME\n" + UNPACK_PYTHON.format(archive='"$archive"')
    if own and not sent_archive:
        archive = shlex.quote(own)
    elif own:
        archive, remove = sent_archive, ' "$archive"'
        find += '\nrm -f "$archive"'
        arrive = WAIT_FOR_ENVIRONMENT_SCRIPT.format(
            size=os.path.getsize(own), patience=ARRIVING_S, said=COMMENT_PREFIX
        )
    return SCRIPT.format(
        factory=order.factory, archive=archive, remove=remove, mark=f"end-{secrets.token_hex(8)}", worker=worker,
        secret=base64.encodebytes(order.password_file.read_bytes()).decode(), arrive=arrive, env=environment_exports(settings), find=find,
        wrapper=settings.wrapper, feature=f"{PILOT_FEATURE_PREFIX}{order.factory}", words=shlex.join(worker_command_line(order)), said=COMMENT_PREFIX,
        wall=WALL_TIME_SCRIPT.format(spare=MARGIN_S) if settings.wall_time is None else "wall=",
    )  # fmt: skip


def _job_status(row: _SqueueRow) -> JobStatus:
    """Convert a row of ``squeue`` to the status of a job."""
    state, reason = row.state, "" if row.reason in ("None", "(null)") else row.reason
    if state in HOLDING or (state in WAITING and HELD_REASON.search(reason)):
        words = REASONS.get(reason)
        return JobStatus(HELD, f"{words}: {reason}" if words else reason or state)
    if state in WAITING:
        return JobStatus(IDLE, reason)
    if state in WORKING:
        return JobStatus(RUNNING)
    if state == "COMPLETED":
        return JobStatus(GONE, exited_cleanly=True, ran=True)
    if state == "FAILED":
        code, _, signal = row.code.partition(":")
        end = f"signal {signal}" if signal not in ("", "0") else f"exit code {code}"
        words = row.comment.removeprefix(COMMENT_PREFIX) if row.comment.startswith(COMMENT_PREFIX) else ""
        return JobStatus(GONE, f"{end}: {words}" if words else end, ran=True)
    return JobStatus(GONE, REASONS.get(state) or state, ran=state not in NEVER_RAN)
