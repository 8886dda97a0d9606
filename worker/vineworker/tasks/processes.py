"""Run tasks with a process of their own, and collect their outputs: commands and Python tasks."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional, Union

from vinecore.protocol import INLINE_LIMIT, MB
from vinecore.protocol import messages as m
from vinecore.protocol.trees import remove_tree
from vineworker.machine import descendants
from vineworker.machine.monitor_thread import SAMPLE_INTERVAL_S
from vineworker.machine.process_reaper import ProcessReaper
from vineworker.machine.resource_monitor import (
    LimitExceeded,
    Peak,
    file_size,
    sum_file_sizes,
)
from vineworker.slot_protocol import Reply
from vineworker.storage.cache import Cache
from vineworker.storage.file_stamps import ObjectChanged
from vineworker.storage.files import DiskFull
from vineworker.tasks import output_files, sandbox

log = logging.getLogger("vine_worker")

STRAYS_TIMEOUT_S = 1.0

# A longer output would not fit into a message, with its characters written as JSON.
MAX_OUTPUT_LIMIT = 8 << 20


class Command:
    """A running shell command, in a process group of its own.

    Parameters
    ----------
    run, folder, output
        The task, its sandbox, and the file for its output.
    prefix
        Arguments that start an environment.
    short
        A short path to the folder, or "".
    process_reaper
        Starts the process.
    over
        Called in the waiting thread with the exit code; negative for a signal, as in `subprocess`.
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
                # what it has started and left behind
                descendants.kill_group(self.process.pid)
                # also what has left its group
                self._process_reaper.kill_strays(STRAYS_TIMEOUT_S)
                # after another wait for it, this counts as success
                self.process.wait()
            if ended is not None:
                code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        except Exception:
            log.exception("how a command has ended cannot be told: it counts as killed")
            self.kill()
            # marks the process as ended if another thread has waited for it: its number may be
            # that of another process now
            self.process.poll()
        finally:
            self._process_reaper.remove_process(self.process.pid)
            self._on_exit(self, code)

    def kill(self) -> None:
        """Kill the command and the processes of its group."""
        with self._lock:
            # not waited for, so the number is still its own
            if self.process.returncode is None:
                descendants.kill_group(self.process.pid)


def find_time_limit(run: m.RunTask) -> Optional[tuple[float, str]]:
    """Return how long a task may run, and the kind of its failure if it runs longer.

    Its time begins when its process does; what is left until a fixed time, when it was sent.
    """
    limits = [
        (float(run.options[name]), kind)
        for name, kind in (("time_max", "time"), ("time_left", "end time"))
        if name in run.options
    ]
    return min(limits) if limits else None


def find_excess(
    run: m.RunTask, folder: str, output: str, copies: Mapping[int, int], result: int = 0
) -> Optional[LimitExceeded]:
    """Return the excess of a finished task over its limit of disk space, its result included.

    The monitor takes samples only, and the task may have been faster.

    Parameters
    ----------
    run, folder, output
        The task, its sandbox, and its output file.
    copies
        The inputs in the sandbox; see `sandbox.create_sandbox`.
    result
        Bytes of its result.
    """
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
    """Collect the outputs of a shell command, in a helper thread.

    Parameters
    ----------
    command, code
        The command, and its exit code.
    peak
        Its measured usage.
    killed
        Why this worker has killed it: "", "time", "exhausted" or "cancelled".
    limit
        The limit that it has exceeded, if any.
    cache
        Stores the outputs.
    copies
        The inputs in its sandbox; see `sandbox.create_sandbox`.
    """
    run = command.run
    if not killed:
        limit = find_excess(run, command.folder, command.output, copies)
        killed = "exhausted" if limit is not None else ""
    failed = code != 0 or bool(killed)
    wall = time.monotonic() - command.start_time
    # of what was cancelled nothing may come into the cache: the same objects may be in the making,
    # or made, by another task
    outputs = [] if killed == "cancelled" else run.options.get("outputs", [])
    try:
        cache.check_sandbox(command.folder, f"task {run.task}")
        sizes, sums, missing = sandbox.collect_outputs(command.folder, outputs, cache, failed=failed)
        info: dict[str, Any] = {
            "exit_code": code if code >= 0 else 9 if killed else -code,
            "signal": -code if code < 0 else 0,
            "output": sandbox.read_log_tail(command.output, _output_limit(run)),
            "outputs": sizes,
            "digests": sums,
            "measured": usage_for_message(peak, wall),
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
    """Build the message that reports the end of a task.

    Parameters
    ----------
    run, info, wall
        The task, the info for the message, and its duration.
    killed, limit
        As for `collect_command`.
    missing
        Reasons why outputs are missing.
    """
    if killed == "exhausted" and limit is not None:
        more = {"resource": limit.resource, "limit": limit.limit_mb, "peak": limit.peak_mb}
        return m.TaskFailed(run.task, "exhausted", {**info, **more}, b"")
    if killed:
        allowed = run.options.get("time_max")
        reason = f"it was ended after {wall:.1f} s, because it ran longer than its time_max of {allowed} s"
        more = {"limit": allowed, "reason": reason} if killed == "time" else {}
        if killed == "end time":
            more = {"reason": f"it was ended after {wall:.1f} s, at the time that set_time_end has given"}
        return m.TaskFailed(run.task, killed, {**info, "wall_s": wall, **more}, b"")
    return sandbox.done_or_missing_output(
        run, info["outputs"], missing, m.TaskDone(run.task, 0, wall, info, b"")
    )


def usage_for_message(peak: Optional[Peak], wall_s: Optional[float] = None) -> Optional[dict[str, Any]]:
    """Convert the usage of a task to its form in messages.

    Parameters
    ----------
    peak
        What the monitor has measured; None if it has not.
    wall_s
        The duration of the task; by default the time during which it was monitored, which begins
        some moment after the start of its process.
    """
    if peak is None:
        return None
    # for a short task, CPU time over wall time gives the start of its process, not its cores
    cores = peak.cores_avg or 0 if peak.wall_s >= SAMPLE_INTERVAL_S else 0
    return {
        "cores": cores,
        "memory": peak.memory_mb or 0,
        "disk": peak.disk_mb or 0,
        "wall_s": peak.wall_s if wall_s is None else wall_s,
        "processes": peak.processes,
    }


def _output_limit(run: m.RunTask) -> int:
    """Return how many bytes of the output of a task are sent."""
    return min(int(run.options.get("output_limit", sandbox.MAX_OUTPUT_BYTES)), MAX_OUTPUT_LIMIT)


def _read_output(run: m.RunTask, folder: str, output: str) -> dict[str, str]:
    """Return the output of a Python task: all of a vertex's, else the end."""
    if "program" in run.options:
        return output_files.take_output_files(output, os.path.join(folder, output_files.ERRORS_NAME))
    printed = sandbox.read_log_tail(output, _output_limit(run))
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
    """Collect the outputs of a Python task, in a helper thread.

    Parameters
    ----------
    run, reply
        The task, and the reply of its slot.
    folder, output, result
        Its sandbox, its output file, and the file of a large result.
    peak
        Its measured usage.
    cache
        Stores the outputs.
    copies
        The inputs in its sandbox; see `sandbox.create_sandbox`.
    """
    excess = find_excess(run, folder, output, copies, reply.size if reply.size > INLINE_LIMIT else 0)
    failed = reply.kind != "done" or excess is not None
    try:
        if not failed and reply.size > INLINE_LIMIT:
            cache.check_fits("what it returned", reply.size)
        cache.check_sandbox(folder, f"task {run.task}")
        sizes, sums, missing = sandbox.collect_outputs(
            folder, run.options.get("outputs", []), cache, failed=failed
        )
        said = _read_output(run, folder, output)
    except (DiskFull, ObjectChanged):
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
    return _store_result(run, reply, result, info, sizes, missing, cache)


def collect_call(
    run: m.RunTask, reply: Reply, folder: str, result: str, cache: Cache
) -> tuple[Union[m.TaskDone, m.TaskFailed], dict[str, int]]:
    """Collect the outputs of a call of a library, in a helper thread.

    Parameters
    ----------
    run, reply
        The call, and the reply of its slot.
    folder, result
        Its sandbox, "" if that could not be made, and the file of a large result.
    cache
        Stores the outputs.
    """
    if not folder:
        return m.TaskFailed(run.task, reply.kind, reply.info, reply.payload), {}
    failed = reply.kind != "done"
    try:
        cache.check_sandbox(folder, f"task {run.task}")
        sizes, sums, missing = sandbox.collect_outputs(
            folder, run.options.get("outputs", []), cache, failed=failed
        )
    except (DiskFull, ObjectChanged):
        remove_tree(result)
        raise
    finally:
        sandbox.remove_sandbox(folder, cache)
    info = {**reply.info, "outputs": sizes, "digests": sums}
    if failed:
        return m.TaskFailed(run.task, reply.kind, info, reply.payload), sizes
    return _store_result(run, reply, result, info, sizes, missing, cache)


def _store_result(
    run: m.RunTask,
    reply: Reply,
    result: str,
    info: dict[str, Any],
    sizes: dict[str, int],
    missing: list[str],
    cache: Cache,
) -> tuple[Union[m.TaskDone, m.TaskFailed], dict[str, int]]:
    """Store what a function has returned, and return the message for the manager."""
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
