"""Tasks with a process of their own: commands, Python tasks, and their limits."""

from __future__ import annotations

import asyncio
import os
import shlex
from typing import Any, Callable, Optional

from vinecore.protocol import messages
from vineworker.library import environments
from vineworker.library.slot_process import SlotProcess
from vineworker.machine import tmpdir
from vineworker.machine.argument_limits import ArgumentsTooLong
from vineworker.machine.monitor_thread import ResourceMonitorThread
from vineworker.machine.resource_monitor import LimitExceeded
from vineworker.session.context import SessionContext, describe_error
from vineworker.state import events, instructions
from vineworker.state.records import required_objects
from vineworker.storage.file_stamps import ObjectChanged
from vineworker.storage.files import is_disk_full
from vineworker.tasks import processes, sandbox
from vineworker.tasks.watched_outputs import OutputWatcher, WatchedTask, read_parts


class ProcessHandler:
    """The tasks of a session that have processes of their own.

    Parameters
    ----------
    context
        What the parts of the session share.
    monitor
        Measures the tasks.

    Attributes
    ----------
    python_tasks
        Number of a slot -> the one task that it is for, and the slot.
    time_limits
        Task -> timer that ends it.
    """

    def __init__(self, context: SessionContext, monitor: ResourceMonitorThread) -> None:
        self._context, self._monitor = context, monitor
        self.python_tasks: dict[int, tuple[messages.RunTask, SlotProcess]] = {}
        self.time_limits: dict[int, asyncio.TimerHandle] = {}
        self._commands: dict[int, processes.Command] = {}
        # task with a command -> inputs that are copies in its folder
        self._copies: dict[int, dict[int, int]] = {}
        self._killed: dict[int, tuple[str, Optional[LimitExceeded]]] = {}
        self.output_watcher = OutputWatcher(context.send, context.run_in_thread, context.loop.call_later)

    def close(self) -> None:
        """Kill all commands."""
        for command in self._commands.values():
            command.kill()
        for timer in self.time_limits.values():
            timer.cancel()

    # ---- limits

    def set_time_limit(self, run: messages.RunTask, kill: Callable[[], None]) -> None:
        """Kill a task when it has run too long, or its time is over."""
        limit = processes.find_time_limit(run)

        def end() -> None:
            if run.task in self._context.state.tasks:
                self._killed[run.task] = (reason, None)
                kill()

        if limit is not None:
            seconds, reason = limit
            self.time_limits[run.task] = self._context.loop.call_later(max(0.0, seconds), end)

    def cancel_time_limit(self, task: int) -> None:
        """Note that a task has ended before its time was over."""
        timer = self.time_limits.pop(task, None)
        if timer is not None:
            timer.cancel()

    def on_limit_exceeded(self, exceeded: LimitExceeded) -> None:
        """Kill a task that uses more than it may."""
        task = int(exceeded.task_id)
        if task not in self._context.state.tasks or task in self._killed:
            return
        self._killed[task] = ("exhausted", exceeded)
        if task in self._commands:
            self._commands[task].kill()
        for run, slot in self.python_tasks.values():
            if run.task == task:
                slot.kill()

    def _take_kill_reason(self, task: int) -> tuple[str, Optional[LimitExceeded]]:
        """Return why a task that is over was killed, if it was."""
        self.cancel_time_limit(task)
        return self._killed.pop(task, ("", None))

    # ---- ends

    def task_not_started(self, run: messages.RunTask, error: BaseException) -> None:
        """Report a task that could not get its inputs or its process."""
        failed = messages.TaskFailed(run.task, *self.describe_start_failure(run, error), b"")
        self._context.feed_event(events.ProcessTaskFinished(run.task, failed, {}))

    def describe_start_failure(
        self, run: messages.RunTask, error: BaseException
    ) -> tuple[str, dict[str, Any]]:
        """Return the kind of failure of a task that could not get its inputs, and the evidence.

        Where an input has vanished, that is not the fault of the task.
        """
        context = self._context
        changed = error.names if isinstance(error, ObjectChanged) else []
        found = [(name, context.cache.get(name)) for name in required_objects(run)]
        vanished = [
            name
            for name, stored in found
            if name not in changed
            and (stored is None or (isinstance(stored, str) and not os.path.exists(stored)))
        ]
        lost = [*changed, *vanished]
        context.report_lost(lost)
        if is_disk_full(error):
            kind, info = "disk", context.describe_full_disk(error)
        elif isinstance(error, ArgumentsTooLong):
            kind, info = "not started", {"reason": str(error)}
        else:
            kind, info = "crash" if lost else "input", {"reason": describe_error(error)}
        return kind, info

    def on_outputs_collected(
        self, run: messages.RunTask, result: Any, error: Optional[BaseException]
    ) -> None:
        """Report a task whose outputs are in the cache, or could not be taken there."""
        if error is not None:
            kind, info = "output missing", {"reason": describe_error(error)}
            if is_disk_full(error):
                kind, info = "disk", self._context.describe_full_disk(error)
            elif isinstance(error, ObjectChanged):
                # it has to run again, with what they should be
                kind = "crash"
                self._context.report_lost(error.names)
            result = (messages.TaskFailed(run.task, kind, info, b""), {})
        self._take_kill_reason(run.task)
        self._context.feed_event(events.ProcessTaskFinished(run.task, *result))

    def send_rest(self, watched: Optional[WatchedTask]) -> None:
        """Send the end of watched outputs before they are taken from the sandbox; in a helper thread."""
        for part in read_parts(watched) if watched is not None else ():
            self._context.call_in_loop(self._context.send, part)

    # ---- Python tasks

    def on_python_task_replied(self, event: events.CallsReturned) -> None:
        """Collect the outputs of a Python task."""
        context = self._context
        (run, slot), reply = self.python_tasks.pop(event.slot), event.replies[0]
        slot.fork_server.prepare(reply.info)
        peak = self._monitor.remove_task(run.task)
        folder, result = slot.log + ".d", context.result_path(run.task)
        watched = self.output_watcher.remove_task(run.task)

        def work() -> Any:
            self.send_rest(watched)
            return processes.collect_python_task(
                run, reply, folder, slot.log, result, peak, context.cache, slot.copies
            )

        context.run_in_thread(work, lambda made, error: self.on_outputs_collected(run, made, error))

    def on_slot_exited(self, event: events.SlotExited, slot: SlotProcess) -> None:
        """Clean up after a slot; report its Python task if it was killed before it had replied."""
        context = self._context
        run, _slot = self.python_tasks.pop(event.slot, (None, None))
        if slot.temporary:
            context.threads.submit(tmpdir.remove_folder, slot.temporary)
        if run is None:
            return
        peak = self._monitor.remove_task(run.task)
        self.output_watcher.remove_task(run.task)
        reason, limit = self._take_kill_reason(run.task)
        if reason:
            info = {
                **event.info,
                "exit_code": 9,
                "output": event.info.get("log", ""),
                "outputs": {},
                "measured": processes.usage_for_message(peak),
            }
            wall = 0.0 if peak is None else peak.wall_s
            message = processes.finished_message(run, info, wall, reason, limit, [])
            context.apply_inputs(events.ProcessTaskFinished(run.task, message, {}))
        context.threads.submit(
            sandbox.discard_task_files, slot.log + ".d", slot.log, f"task {run.task}", context.cache
        )

    # ---- commands

    def start_command(self, instruction: instructions.StartProcess) -> None:
        """Make the sandbox of a command, then start it."""
        run, context = instruction.run, self._context
        output = context.new_folder()
        folder = output + ".d"
        context.run_in_thread(
            lambda: sandbox.create_sandbox(folder, run.options.get("mounts", []), context.cache),
            lambda copies, error: self._start_in_sandbox(run, folder, output, copies, error),
        )

    def _start_in_sandbox(
        self,
        run: messages.RunTask,
        folder: str,
        output: str,
        copies: Any,
        error: Optional[BaseException],
    ) -> None:
        context = self._context
        try:
            if run.task not in context.state.tasks:
                msg = "it was cancelled"
                raise InterruptedError(msg)
            if error is not None:
                raise error
            command = processes.Command(
                run,
                folder,
                output,
                [
                    *shlex.split(context.settings.task_wrapper),
                    *environments.shell_prefix(run.options.get("environment", ""), context.cache),
                ],
                context.short_path(folder),
                context.process_reaper,
                lambda c, code: context.call_in_loop(self._on_command_exited, c, code),
            )
        except Exception as problem:  # noqa: BLE001 - told to the manager
            self.task_not_started(run, problem)
            context.threads.submit(
                sandbox.discard_task_files, folder, output, f"task {run.task}", context.cache
            )
            return
        self._commands[run.task] = command
        self._copies[run.task] = copies
        self._monitor.add_task(run.task, command.process.pid, run.options, folder, output, copies)
        self.output_watcher.add_task(run, folder)
        self.set_time_limit(run, command.kill)

    def _on_command_exited(self, command: processes.Command, code: int) -> None:
        run, cache = command.run, self._context.cache
        del self._commands[run.task]
        peak = self._monitor.remove_task(run.task)
        reason, limit = self._take_kill_reason(run.task)
        copies = self._copies.pop(run.task, {})
        watched = self.output_watcher.remove_task(run.task)

        def work() -> Any:
            self.send_rest(watched)
            return processes.collect_command(command, code, peak, reason, limit, cache, copies)

        self._context.run_in_thread(work, lambda made, error: self.on_outputs_collected(run, made, error))

    def kill_command(self, instruction: instructions.KillProcess) -> None:
        """Kill the command of a cancelled task."""
        command = self._commands.get(instruction.task)
        if command is not None:
            self._killed[instruction.task] = ("cancelled", None)
            command.kill()
