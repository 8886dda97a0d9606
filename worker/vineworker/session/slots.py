"""Fork servers and slots: start, stop, and what is sent to them."""

from __future__ import annotations

import os
import time
from typing import Any, Optional, Union

from vinecore.protocol import INLINE_LIMIT, messages
from vinecore.protocol.trees import remove_tree
from vineworker.library.fork_server_process import ForkServerProcess, remove_files
from vineworker.library.slot_process import SlotProcess
from vineworker.machine.library_disk import LibraryTooLarge
from vineworker.machine.monitor_thread import ResourceMonitorThread
from vineworker.session.context import SessionContext, describe_error
from vineworker.session.processes import ProcessHandler
from vineworker.slot_protocol import Call, DropHeldResults, DropShared, ObjectData, Reply, SpillResults
from vineworker.state import events, instructions
from vineworker.state.records import SANDBOX_OPTIONS
from vineworker.storage.file_stamps import ObjectChanged
from vineworker.storage.files import DiskFull
from vineworker.tasks import processes, sandbox
from vineworker.tasks.output_files import ERRORS_NAME


class SlotHandler:
    """The fork servers and slots of a session.

    Parameters
    ----------
    context
        What the parts of the session share.
    task_processes
        Tasks with a process of their own: Python tasks run in slots that are for them alone.
    monitor
        Measures Python tasks, and how much of the disk libraries use.
    """

    def __init__(
        self,
        context: SessionContext,
        task_processes: ProcessHandler,
        monitor: ResourceMonitorThread,
    ) -> None:
        self._context, self._cache = context, context.cache
        self._processes, self._python_tasks = task_processes, task_processes.python_tasks
        self._monitor = monitor
        self._fork_servers: dict[str, ForkServerProcess] = {}
        # fork server -> its folder, which is being made
        self._folders_in_preparation: dict[str, str] = {}
        self._slots: dict[int, SlotProcess] = {}
        # call with a sandbox -> its slot, and its sandbox
        self._call_sandboxes: dict[int, tuple[int, str]] = {}

    def close(self) -> None:
        """End all fork servers with their slots."""
        for fork_server in self._fork_servers.values():
            fork_server.close()

    # ---- fork servers

    def start_fork_server(self, instruction: instructions.StartForkServer) -> None:
        """Make the folder of a fork server, then start it."""
        context, name, folder = self._context, instruction.fork_server, self._context.new_folder()
        options = instruction.library.options if instruction.library else {}
        self._folders_in_preparation[name] = folder

        def then(copies: Any, error: Optional[BaseException]) -> None:
            # it has been stopped already
            if self._folders_in_preparation.get(name) != folder:
                context.threads.submit(remove_files, folder, self._cache)
                return
            del self._folders_in_preparation[name]
            try:
                if error is not None:
                    raise error
                self._start_in_folder(instruction, folder, copies)
            except Exception as problem:  # noqa: BLE001 - told to the manager
                if isinstance(problem, ObjectChanged):
                    context.report_lost(problem.names)
                reason = f"the library could not be started: {describe_error(problem)}"
                # what is asked for cannot be done, here or elsewhere
                is_final = isinstance(problem, ValueError)
                context.feed_event(events.ForkServerExited(name, reason, is_final, b""))
                context.threads.submit(remove_files, folder, self._cache)

        def work() -> dict[int, int]:
            copies = sandbox.create_sandbox(folder, options.get("mounts", []), self._cache, link=False)
            if instruction.library is not None:
                self._cache.checked_path(instruction.library.setup)
            return copies

        context.run_in_thread(work, then)

    def _start_in_folder(
        self, instruction: instructions.StartForkServer, folder: str, copies: dict[int, int]
    ) -> None:
        context, name = self._context, instruction.fork_server
        fork_server = self._fork_servers[name] = ForkServerProcess(
            instruction,
            folder,
            context.short_path(folder),
            self._cache,
            context.feed_event,
            context.python,
            context.process_reaper,
            compat=context.compat,
            wrapper=context.settings.task_wrapper,
        )
        if instruction.library is not None:
            self._monitor.add_library(
                name, fork_server.make_disk_monitor(lambda: self._disk_limit(name), copies)
            )

    def stop_fork_server(
        self, instruction: Union[instructions.StopForkServer, events.ForkServerExited]
    ) -> None:
        """End a fork server with its slots, or clean up after one that has exited."""
        self._monitor.remove_library(instruction.fork_server)
        self._folders_in_preparation.pop(instruction.fork_server, None)
        fork_server = self._fork_servers.pop(instruction.fork_server, None)
        if fork_server is not None:
            fork_server.close()
            self._context.threads.submit(remove_files, fork_server.folder, self._cache)

    def _disk_limit(self, library: str) -> int:
        """Return how many MB of the disk a library may take.

        That is what was asked for, all units of it together; else, as for tasks, what this worker
        has.
        """
        fork_server = self._context.state.fork_servers.get(library)
        asked = (
            fork_server.library.options.get("disk")
            if fork_server is not None and fork_server.library is not None
            else 0
        )
        return int(asked or self._context.settings.resources.disk_mb)

    def on_library_too_large(self, library: str, found: LibraryTooLarge) -> None:
        """End the slot that has written most, or the library where no slot frees the disk."""
        fork_server = self._fork_servers.get(library)
        if fork_server is None:
            return
        if found.slot is None:
            reason = (
                f"its folder and what it prints take {found.peak_mb} MB of disk, its limit is "
                f"{found.limit_mb} MB: give the library more disk"
            )
            self._context.feed_event(events.ForkServerExited(library, reason, False, b""))
        elif found.slot in self._slots:
            info = {
                "exit_code": 9,
                "output": self._slots[found.slot].read_output_tail(),
                "outputs": {},
                "resource": "disk",
                "limit": found.limit_mb,
                "peak": found.peak_mb,
                "library": library,
            }
            self._context.feed_event(events.DiskExhausted(found.slot, info))

    # ---- slots

    def start_slot(self, instruction: instructions.StartSlot) -> None:
        """Fork a slot; that of a Python task as soon as its sandbox is made."""
        fork_server, context = self._fork_servers.get(instruction.fork_server), self._context
        # its end has been told
        if fork_server is None:
            return
        run = instruction.run
        output = "" if run is None else context.new_folder()
        slot = fork_server.add_slot(instruction.slot, output)
        self._slots[instruction.slot] = slot
        context.loop.create_task(slot.connect())
        if run is None:
            slot.fork()
            return
        self._python_tasks[instruction.slot] = (run, slot)
        folder = output + ".d"
        # what it says is shown to its user
        if "program" in run.options:
            slot.errors = os.path.join(folder, ERRORS_NAME)

        def work() -> tuple[dict[str, str], dict[int, int]]:
            copies = sandbox.create_sandbox(folder, run.options.get("mounts", []), self._cache)
            return sandbox.task_environment(run.options, folder, context.short_path(folder)), copies

        context.run_in_thread(
            work, lambda made, error: self._start_python_task(run, fork_server, slot, made, error)
        )

    def _start_python_task(
        self,
        run: messages.RunTask,
        fork_server: ForkServerProcess,
        slot: SlotProcess,
        made: Any,
        error: Optional[BaseException],
    ) -> None:
        """Fork the process of a Python task in its sandbox."""
        context, folder = self._context, slot.log + ".d"
        # its fork server has died
        if slot.id not in self._slots:
            context.threads.submit(sandbox.remove_sandbox, folder, self._cache)
        elif run.task not in context.state.tasks:
            fork_server.cancel_start(slot, "it was cancelled")
        elif error is not None:
            self._processes.task_not_started(run, error)
            fork_server.cancel_start(slot, "its inputs could not be put in place")
        else:
            variables, slot.copies = made
            slot.on_forked = lambda pid: self._monitor.add_task(
                run.task, pid, run.options, folder, slot.log, slot.copies
            )
            slot.fork_server.prepare({"modules": run.options.get("preload", [])})
            slot.fork(folder)
            self._processes.output_watcher.add_task(run, folder)
            self._processes.set_time_limit(run, slot.kill)
            self._send_to_slot(slot, run, run.shared, folder, {"env": variables} if variables else {})

    def kill_slot(self, instruction: instructions.KillSlot) -> None:
        """Kill the process of a slot."""
        slot = self._slots.get(instruction.slot)
        if slot is not None:
            slot.kill()

    def on_slot_exited(self, event: events.SlotExited) -> None:
        """Clean up after a slot."""
        self._processes.cancel_time_limit(event.running)
        for task, (slot, folder) in list(self._call_sandboxes.items()):
            if slot == event.slot:
                del self._call_sandboxes[task]
                self._processes.output_watcher.remove_task(task)
                self._context.threads.submit(
                    sandbox.discard_task_files, folder, folder + ".log", f"task {task}", self._cache
                )
        self._processes.on_slot_exited(event, self._slots.pop(event.slot))

    # ---- calls

    def send_call(self, instruction: instructions.SendCall) -> None:
        """Send a call to a slot of a library; a Python task is sent when its sandbox is made."""
        if instruction.slot not in self._python_tasks:
            slot = self._slots.get(instruction.slot)
            given = instruction.run.options
            if slot is not None and given and not SANDBOX_OPTIONS.isdisjoint(given):
                self._make_call_sandbox(slot, instruction)
            elif slot is not None:
                options: dict[str, Any] = {}
                if instruction.chained_input is not None:
                    options["fed"] = instruction.chained_input
                if instruction.hold_limits:
                    options["hold"] = instruction.hold_limits
                if instruction.held_inputs:
                    options["held"] = instruction.held_inputs
                self._send_call(slot, instruction, "", options)

    def _send_call(
        self,
        slot: SlotProcess,
        instruction: instructions.SendCall,
        folder: str,
        options: dict[str, Any],
    ) -> None:
        run = instruction.run
        limit = processes.find_time_limit(run) if run.options else None
        if limit is not None:
            options["timed"] = True
            self._set_call_time_limit(run, slot, *limit)
        self._send_to_slot(slot, run, instruction.new_shared, folder, options)

    def _make_call_sandbox(self, slot: SlotProcess, instruction: instructions.SendCall) -> None:
        """Send a call to a slot as soon as its sandbox is made.

        It is the only call in flight to this slot.
        """
        run, context, folder = instruction.run, self._context, self._context.new_folder()
        self._call_sandboxes[run.task] = slot.id, folder
        library = self._fork_servers.get(run.library)

        def work() -> None:
            sandbox.create_sandbox(folder, run.options.get("mounts", []), self._cache)
            if library is not None:
                sandbox.link_files(library.folder, library.mounts, folder)

        def then(_made: Any, error: Optional[BaseException]) -> None:
            # the slot was killed, or has died
            if slot.id not in self._slots:
                context.threads.submit(sandbox.remove_sandbox, folder, self._cache)
            elif error is not None:
                del self._call_sandboxes[run.task]
                context.threads.submit(sandbox.remove_sandbox, folder, self._cache)
                kind, info = self._processes.describe_start_failure(run, error)
                reply = Reply(run.task, kind, 0, 0.0, info, b"")
                context.feed_event(events.CallsReturned(slot.id, [reply]))
            else:
                self._processes.output_watcher.add_task(run, folder)
                variables = {"VINE_SANDBOX": folder, **run.options.get("env", {})}
                self._send_call(slot, instruction, folder, {"env": variables})

        context.run_in_thread(work, then)

    def collect_outputs(self, instruction: instructions.CollectOutputs) -> None:
        """Take the outputs of a call from its sandbox."""
        run, reply, context = *instruction, self._context
        _slot, folder = self._call_sandboxes.pop(run.task, (0, ""))
        result = context.result_path(run.task)
        watched = self._processes.output_watcher.remove_task(run.task)

        def work() -> Any:
            self._processes.send_rest(watched)
            return processes.collect_call(run, reply, folder, result, self._cache)

        context.run_in_thread(
            work,
            lambda made, error: self._processes.on_outputs_collected(run, made, error),
        )

    def _send_to_slot(
        self,
        slot: SlotProcess,
        run: messages.RunTask,
        new_shared: list[str],
        folder: str,
        options: dict[str, Any],
    ) -> None:
        shared = [
            (name, self._send_or_locate_object(slot, name, name in new_shared, True)) for name in run.shared
        ]
        held = {name for name, _task in options.get("held", ())}
        inputs = [
            (name, "" if name in held else self._send_or_locate_object(slot, name, True, False))
            for name in run.inputs
        ]
        given = run.options
        for option in ("raw", "program", "record", "settings"):
            if option in given:
                options[option] = True
        if "fork" in given:
            options["fork"] = given["fork"]
        if "env" in given and not folder:
            options["env"] = given["env"]
        result = self._context.result_path(run.task)
        call = Call(run.task, run.function, shared, inputs, result, folder, options, run.payload)
        slot.channel.send(call)  # type: ignore[arg-type]

    def _send_or_locate_object(self, slot: SlotProcess, name: str, send: bool, shared: bool) -> str:
        """Return the path of an object, or send it beside the call and return "".

        An object that has vanished, or is not what it was, has a path where nothing is.
        """
        stored = self._cache.get(name)
        if not isinstance(stored, bytes):
            return stored if stored and self._cache.is_intact(name) else self._cache.path_for(name)
        if send:
            slot.channel.send(ObjectData(name, shared, stored))  # type: ignore[arg-type]
        return ""

    def _set_call_time_limit(
        self, run: messages.RunTask, slot: SlotProcess, seconds: float, reason: str
    ) -> None:
        """End a call that runs too long.

        Its time begins when the slot begins with it; the slot itself may have to be started yet.
        """
        context, timers = self._context, self._processes.time_limits

        def check() -> None:
            start_time = slot.start_time_of(run.task)
            left = seconds if start_time is None else start_time + seconds - time.monotonic()
            if run.task not in context.state.tasks or slot.id not in self._slots:
                timers.pop(run.task, None)
            elif left > 0:
                timers[run.task] = context.loop.call_later(left, check)
            else:
                timers.pop(run.task, None)
                info = {"exit_code": 9, "output": slot.read_output_tail(), "outputs": {}}
                message = processes.finished_message(run, info, seconds - left, reason, None, [])
                context.feed_event(events.TimeLimitExceeded(message))

        self._processes.cancel_time_limit(run.task)
        timers[run.task] = context.loop.call_later(seconds, check)

    def check_disk_for_reply(self, reply: Reply) -> Reply:
        """Return the reply to take: a large result only if there is room for it."""
        if reply.kind == "unwritten":
            info = {"reason": reply.info["reason"], "room": max(0, self._cache.free_bytes())}
            return Reply(reply.task, "disk", 0, reply.wall_s, info, b"")
        if reply.kind in ("done", "wrote") and reply.size > INLINE_LIMIT and "held" not in reply.info:
            try:
                self._cache.check_fits("what it returned", reply.size)
            except DiskFull as error:
                context = self._context
                context.threads.submit(remove_tree, context.result_path(reply.task))
                info = context.describe_full_disk(error)
                return Reply(reply.task, "disk", 0, reply.wall_s, info, b"")
        return reply

    # ---- objects in slots

    def drop_shared(self, instruction: instructions.DropSharedInSlot) -> None:
        """Have a slot forget shared objects."""
        slot = self._slots.get(instruction.slot)
        if slot is not None:
            slot.channel.send(DropShared(instruction.names))  # type: ignore[arg-type]

    def spill_results(self, instruction: instructions.SpillResultsInSlot) -> None:
        """Have a slot write results that it holds in memory."""
        slot = self._slots.get(instruction.slot)
        if slot is not None:
            slot.channel.send(SpillResults(instruction.tasks))  # type: ignore[arg-type]

    def drop_held_results(self, instruction: instructions.DropHeldResultsInSlot) -> None:
        """Have a slot forget results that it holds in memory."""
        slot = self._slots.get(instruction.slot)
        if slot is not None:
            slot.channel.send(DropHeldResults(instruction.tasks))  # type: ignore[arg-type]
