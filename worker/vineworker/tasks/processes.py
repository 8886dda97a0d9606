"""Tasks with a process of their own: shell commands, and single Python calls that a host forks."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional, Union

from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.protocol.trees import remove_tree
from vineworker.machine import descendants
from vineworker.machine.monitor_thread import SAMPLE_INTERVAL_S
from vineworker.machine.process_reaper import ProcessReaper
from vineworker.machine.resource_monitor import (
    MB,
    LimitExceeded,
    Peak,
    file_size,
    sum_file_sizes,
)
from vineworker.slot_protocol import Reply
from vineworker.storage.cache import Cache, DiskFull
from vineworker.storage.file_stamps import Changed
from vineworker.tasks import output_files, sandbox

log = logging.getLogger("vine_worker")

STRAYS_TIMEOUT_S = 1.0


class Command:
    """A running shell command, in a process group of its own.

    Parameters
    ----------
    short
        A short path to the folder, or "".
    process_reaper
        Starts its process.
    over
        Called in the waiting thread with the exit code: negative for a signal, as `subprocess` has it.
    """

    def __init__(
        self,
        run: m.RunTask,
        folder: str,
        output: str,
        prefix: list[str],
        short: str,
        process_reaper: ProcessReaper,
        over: Callable[[Command, int], None],
    ) -> None:
        self.run, self.folder, self.output = run, folder, output
        self.start_time = time.monotonic()
        self._on_exit, self._process_reaper = over, process_reaper
        self._lock = threading.Lock()
        variables = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
        for name, value in sandbox.task_environment(run.options, folder, short).items():
            if value is None:
                variables.pop(name, None)
            else:
                variables[name] = value
        with open(output, "ab") as log:
            self.process = process_reaper.start(
                [*prefix, "/bin/sh", "-c", run.options["command"]], variables, cwd=folder, stdout=log, stderr=log,
                preexec_fn=descendants.become_subreaper,
            )  # fmt: skip
        threading.Thread(target=self._wait, name=f"vine-task-{run.task}", daemon=True).start()

    def _wait(self) -> None:
        code = -int(signal.SIGKILL)
        try:
            ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
            with self._lock:
                self._kill_group()  # what it has started and left behind
                self._process_reaper.kill_strays(STRAYS_TIMEOUT_S)  # also what has left its group
                self.process.wait()  # which takes it for success if somebody else has waited for it
            if ended is not None:
                code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        except Exception:
            log.exception("how a command has ended cannot be told: it counts as killed")
            self.kill()
            self.process.poll()  # so that nobody takes the number for its own any more, where somebody else has waited for it
        finally:
            self._process_reaper.remove_process(self.process.pid)
            self._on_exit(self, code)

    def kill(self) -> None:
        """End the command and everything it has started."""
        with self._lock:
            if self.process.returncode is None:  # not waited for, so the number is still its own
                self._kill_group()

    def _kill_group(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (
            ProcessLookupError,
            PermissionError,
        ):  # the latter is what some systems say of a group of zombies
            pass


def find_excess(
    run: m.RunTask, folder: str, output: str, copies: Mapping[int, int], result: int = 0
) -> Optional[LimitExceeded]:
    """Look a last time how much a task that is over has written, its result included, if it has a limit for that: it may have been faster than who looks now and then."""
    limit = (run.options.get("limits") or {}).get("disk")
    if limit is None:
        return None
    used = sum_file_sizes(folder, copies=copies) + file_size(output) + result
    return LimitExceeded(run.task, "disk", limit, -(-used // MB)) if used > limit * MB else None


def collect_command(
    command: Command,
    code: int,
    peak: Optional[Peak],
    killed: str,
    limit: Optional[LimitExceeded],
    cache: Cache,
    copies: Mapping[int, int] = {},
) -> tuple[Any, dict[str, int]]:
    """Collect what a shell command has left; runs in a helper thread.

    Parameters
    ----------
    killed
        Why this worker has killed it: "", "time", "exhausted" or "cancelled".
    copies
        What in its folder are copies of inputs; see `sandbox.make`.
    """
    run = command.run
    if not killed:
        limit = find_excess(run, command.folder, command.output, copies)
        killed = "exhausted" if limit is not None else ""
    failed = code != 0 or bool(killed)
    wall = time.monotonic() - command.start_time
    measured = usage_for_message(peak)
    if measured is not None:
        # The monitor has seen the process only from some moment after its start.
        measured["wall_s"] = wall
    # of what was cancelled nothing may come into the cache: the same objects may be in the making, or made, by another task
    outputs = [] if killed == "cancelled" else run.options.get("outputs", [])
    try:
        cache.settle(command.folder, f"task {run.task}")
        sizes, sums, missing = sandbox.collect_outputs(command.folder, outputs, cache, failed=failed)
        info: dict[str, Any] = {
            "exit_code": code if code >= 0 else 9 if killed else -code,
            "signal": -code if code < 0 else 0,
            "output": sandbox.read_log_tail(command.output),
            "outputs": sizes,
            "digests": sums,
            "measured": measured,
        }
    finally:
        sandbox.remove_sandbox(command.folder, cache)
        remove_tree(command.output)
    return finished_message(run, info, wall, killed, limit, missing), sizes


def finished_message(
    run: m.RunTask,
    info: dict[str, Any],
    wall: float,
    killed: str,
    limit: Optional[LimitExceeded],
    missing: list[str],
) -> Union[m.TaskDone, m.TaskFailed]:
    """Build the message that reports the end of a task."""
    if killed == "exhausted" and limit is not None:
        more = {"resource": limit.resource, "limit": limit.limit_mb, "peak": limit.peak_mb}
        return m.TaskFailed(run.task, "exhausted", {**info, **more}, b"")
    if killed:
        allowed = run.options.get("time_max")
        reason = f"it was ended after {wall:.1f} s, because it ran longer than its time_max of {allowed} s"
        more = {"limit": allowed, "reason": reason} if killed == "time" else {}
        return m.TaskFailed(run.task, killed, {**info, "wall_s": wall, **more}, b"")
    return sandbox.done_or_missing_output(
        run, info["outputs"], missing, m.TaskDone(run.task, 0, wall, info, b"")
    )


def usage_for_message(peak: Optional[Peak]) -> Optional[dict[str, Any]]:
    """Convert the usage of a task to its form in messages."""
    if peak is None:
        return None
    # of a short task, CPU time over wall time says what starting its process took, not how many cores it keeps busy
    cores = peak.cores_avg or 0 if peak.wall_s >= SAMPLE_INTERVAL_S else 0
    return {"cores": cores, "memory": peak.memory_mb or 0, "disk": peak.disk_mb or 0, "wall_s": peak.wall_s}


def _read_output(run: m.RunTask, folder: str, output: str) -> dict[str, str]:
    """Return the printed output of a Python call: all of a vertex, else its end."""
    if "program" in run.options:
        return output_files.take_output_files(output, os.path.join(folder, output_files.ERRORS_NAME))
    printed = sandbox.read_log_tail(output)
    return {"output": printed} if printed else {}


def collect_python_task(
    run: m.RunTask,
    reply: Reply,
    folder: str,
    output: str,
    result: str,
    peak: Optional[Peak],
    cache: Cache,
    copies: Mapping[int, int] = {},
) -> tuple[Union[m.TaskDone, m.TaskFailed], dict[str, int]]:
    """Collect what a single Python call has left; runs in a helper thread."""
    excess = find_excess(run, folder, output, copies, reply.size if reply.size > INLINE_LIMIT else 0)
    failed = reply.kind != "done" or excess is not None
    try:
        if not failed and reply.size > INLINE_LIMIT:
            cache.check_fits("what it returned", reply.size)
        cache.settle(folder, f"task {run.task}")
        sizes, sums, missing = sandbox.collect_outputs(
            folder, run.options.get("outputs", []), cache, failed=failed
        )
        said = _read_output(run, folder, output)
    except (DiskFull, Changed):
        remove_tree(result)
        raise
    finally:
        sandbox.remove_sandbox(folder, cache)
        remove_tree(output)
    use = usage_for_message(peak) or {}
    if reply.wall_s >= SAMPLE_INTERVAL_S and "cpu_s" in reply.info:
        use["cores"] = max(use.get("cores") or 0, reply.info["cpu_s"] / reply.wall_s)
    use["memory"] = use.get("memory") or reply.info.pop("grown_mb", 0)
    info = {
        **reply.info,
        **said,
        "exit_code": int(failed),
        "outputs": sizes,
        "digests": sums,
        "measured": use,
    }
    info.pop("modules", None)
    info.pop("sources", None)
    if excess is not None:
        remove_tree(result)
        return finished_message(run, info, reply.wall_s, "exhausted", excess, []), sizes
    if failed:
        return m.TaskFailed(run.task, reply.kind, info, reply.payload), sizes
    payload = reply.payload
    once = bool(run.return_result and payload and run.options.get("once"))
    if not once:
        if reply.size <= INLINE_LIMIT:
            cache.put_bytes(run.result, payload)
        else:
            cache.store(run.result, result, reply.info.get("digest", ""))
        sizes[run.result] = reply.size
    done = m.TaskDone(run.task, reply.size, reply.wall_s, info, payload if run.return_result else b"")
    return sandbox.done_or_missing_output(run, sizes, missing, done), sizes
