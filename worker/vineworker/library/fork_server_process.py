"""The worker's side of a fork server: its process, its messages, and its slots."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import threading
from typing import Any, Callable, Optional

from vinecore.protocol import messages
from vinecore.protocol.trees import remove_tree
from vineworker.library import environments, startup_watchdog
from vineworker.library.fork_server_connection import ForkServerConnection
from vineworker.library.slot_process import EXIT_WAIT_S, SlotProcess
from vineworker.machine import descendants, tmpdir
from vineworker.machine.library_disk import LibraryDiskMonitor, WritingProcess
from vineworker.machine.process_reaper import ProcessReaper
from vineworker.machine.tmpdir import TMPDIR_NAME
from vineworker.state import events, instructions
from vineworker.storage.cache import Cache
from vineworker.tasks import logs
from vineworker.tasks.sandbox import read_log_tail

MAX_LOG_CHARACTERS = 2000


class ForkServerProcess:
    """A running fork server.

    It leads a process group, so that all processes that its slots have started can be killed.

    Parameters
    ----------
    start
        The instruction of the state machine.
    folder
        Where the library runs; made by the caller.
    short_path
        A short path to that folder.
    cache
        Holds the setup and the environment.
    on_event
        Takes events for the state machine.
    python
        The version of Python of the pickles that it will load.
    process_reaper
        Starts the process, and kills the process groups if the worker is killed.
    compat
        Whether imports of TaskVine's modules lead to this project.
    wrapper
        A command that runs the process; "" for none.
    """

    def __init__(
        self,
        start: instructions.StartForkServer,
        folder: str,
        short_path: str,
        cache: Cache,
        on_event: Callable[[Any], None],
        python: str,
        process_reaper: ProcessReaper,
        *,
        compat: bool = False,
        wrapper: str = "",
    ) -> None:
        self.name, self.folder, self.log = start.fork_server, folder, folder + ".log"
        self._on_event, self._process_reaper = on_event, process_reaper
        self._loop = asyncio.get_running_loop()
        self._failure: Optional[dict[str, Any]] = None
        self.slots: dict[int, SlotProcess] = {}
        options = start.library.options if start.library else {}
        # what of the user's code runs in the process itself
        self._activity = "it ran its init_command" if options.get("init_command") else ""
        self.mounts: list[Any] = options.get("mounts", [])
        # slots have their temporary folders there, unless the user has set TMPDIR
        is_set = tmpdir.VARIABLES[0] in options.get("env", {})
        self._temporary = "" if is_set else os.path.join(short_path, TMPDIR_NAME)
        setup = cache.path(start.library.setup) if start.library else ""
        self.connection = ForkServerConnection(self._receive)
        try:
            with self.connection.remote as remote, open(self.log, "ab") as log:
                command = environments.fork_server_command(
                    start.environment, cache, folder, remote.fileno(), options
                )
                self.process = process_reaper.start(
                    [*shlex.split(wrapper), *command],
                    environments.fork_server_variables(start.environment, folder, short_path, options),
                    cwd=folder,
                    stdout=log,
                    stderr=log,
                    pass_fds=[remote.fileno()],
                )
        except BaseException:
            self.connection.close()
            raise
        self._poll_output()
        # the end of the connection may never come: a process that the fork server has started may
        # have inherited the other end
        threading.Thread(target=self._wait, name="vine-fork-server", daemon=True).start()
        fork = start.library is not None and start.library.exec_mode == "fork"
        request = {
            "setup": setup,
            "error": folder + ".error",
            "stack": folder + ".stack",
            "fork": fork,
            "python": python,
            "preload": options.get("preload", []),
            "compat": compat,
        }
        if start.library is not None and "library_program" in options:
            request["library_program"] = self._describe_program(start.library, cache)
        self.connection.send(request)

    def _describe_program(self, library: messages.Library, cache: Cache) -> dict[str, Any]:
        """Return how the program of a library in another language is started."""
        options = library.options
        slots = options.get("program_slots") or library.slots
        units = max(1, library.slots // slots)
        return {
            "command": options["library_program"],
            "prefix": environments.shell_prefix(library.environment, cache),
            "name": options["label"],
            "slots": slots,
            "cores": max(1, int(options.get("cores") or 1) // units),
            "log": self.log,
            "pickled": "pickled" in options,
        }

    def add_slot(self, number: int, output: str) -> SlotProcess:
        """Return a new slot, not forked yet.

        ``output`` is the output file of a Python task, or "" for a slot of a library.
        """
        has_folder = self._temporary and not output
        temporary = os.path.join(self._temporary, str(number)) if has_folder else ""
        slot = SlotProcess(number, self.connection, self.folder, output, temporary, self._on_event)
        self.slots[number] = slot
        return slot

    def cancel_start(self, slot: SlotProcess, reason: str) -> None:
        """Report the exit of a slot that was not forked."""
        self.slots.pop(slot.id, None)
        slot.on_exited({"reason": reason})

    def make_disk_monitor(self, limit: Callable[[], int], copies: dict[int, int]) -> LibraryDiskMonitor:
        """Return a monitor, for any thread, of the disk space of this process and its slots."""

        def slots() -> dict[int, WritingProcess]:
            return {
                number: WritingProcess(slot.writer, (slot.log, slot.errors))
                for number, slot in list(self.slots.items())
            }

        paths = tuple(self.folder + suffix for suffix in (".log", ".error", ".stack"))
        own = WritingProcess(self.process.pid, paths)
        return LibraryDiskMonitor(self.folder, own, slots, limit, copies)

    def close(self, reason: str = "its library was stopped") -> None:
        """End the process, its slots, and all processes that they have started."""
        if self.connection.is_closed:
            return
        self.connection.close()
        slots, self.slots = self.slots, {}
        # slots come first: their process numbers are theirs only until the fork server waits for
        # them
        for slot in slots.values():
            if slot.pid is not None:
                self._kill_group(slot.pid)
        self._kill_group(self.process.pid)
        self.process.wait()
        self._process_reaper.remove_process(self.process.pid)
        self._process_reaper.kill_strays()
        for slot in slots.values():
            slot.on_exited({"reason": reason, "log": slot.read_output_tail()})

    def _poll_output(self) -> None:
        """Shorten long logs, and report a start that takes long.

        The output of a Python task counts as its own disk space, so it is not shortened.
        """
        if self.connection.is_closed:
            return
        logs.truncate_log(self.log)
        if (place := startup_watchdog.take_report(self.folder + ".stack")) is not None:
            self._on_event(events.ForkServerSlow(self.name, place))
        for slot in self.slots.values():
            if (slow := slot.take_slow_import()) is not None:
                task, module = slow
                self._on_event(events.ForkServerSlow(self.name, module, max(0, task)))
            if not slot.is_python_task:
                logs.truncate_log(slot.log)
                logs.truncate_log(slot.errors)
        self._loop.call_later(logs.POLL_INTERVAL_S, self._poll_output)

    def _wait(self) -> None:
        try:
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
            self._loop.call_soon_threadsafe(self._receive_all)
        except (ChildProcessError, RuntimeError):
            # `close` has waited for the process, or the loop is closed
            pass

    def _receive_all(self) -> None:
        """Process the remaining messages of a process that has exited, then its exit."""
        while not self.connection.is_closed and self._receive():
            pass
        self._on_exit()

    def _receive(self) -> bool:
        """Process one message; return whether there may be more."""
        try:
            message = self.connection.receive()
        except BlockingIOError:
            return False
        if message is None:
            self._on_exit()
            return False
        if "up" in message:
            self._on_event(events.ForkServerReady(self.name, message["wall_s"], message["up"]))
        elif "doing" in message:
            self._activity = message["doing"]
        elif "failed" in message:
            self._failure = message
        elif "forked" in message:
            self._on_forked(self.slots.get(message["forked"]), message["pid"], message["single"])
        elif "exited" in message:
            self._on_slot_exited(message)
        if self._failure is not None:
            self._on_exit()
        return True

    def _on_forked(self, slot: Optional[SlotProcess], pid: int, is_python_task: bool) -> None:
        if is_python_task:
            self._process_reaper.add_group(pid)
        if slot is not None:
            slot.on_started(pid)

    def _on_slot_exited(self, message: dict[str, Any]) -> None:
        slot = self.slots.pop(message["exited"], None)
        if slot is None:
            return
        if slot.pid is not None:
            self._process_reaper.remove_group(slot.pid)
        tail = "" if slot.is_over else slot.read_output_tail()
        slot.on_exited({"reason": message["reason"], "max_rss_mb": message["max_rss_mb"], "log": tail})

    def _on_exit(self) -> None:
        if self.connection.is_closed:
            return
        payload, code = b"", self._exit_code()
        final = self._failure is not None and self._failure["final"]
        self.close("its library's process ended")
        if self._failure is not None:
            reason = self._failure["failed"]
            try:
                with open(self.folder + ".error", "rb") as file:
                    payload = file.read()
            except FileNotFoundError:
                pass
        else:
            reason = self._describe_exit(code)
        self._on_event(events.ForkServerExited(self.name, reason, final, payload))

    def _describe_exit(self, code: Optional[int]) -> str:
        if code is None:
            how = "ended"
        elif code < 0:
            how = f"was killed by signal {-code}"
        else:
            how = f"ended with code {code}"
        when = f" while {self._activity}" if self._activity else ""
        tail = read_log_tail(self.log, MAX_LOG_CHARACTERS).strip()
        output = f"; it has said: {tail}" if tail else ""
        return f"the library's process {how}{when}{output}"

    def _exit_code(self) -> Optional[int]:
        """Return the exit code, or None if the process has closed its socket but still runs."""
        try:
            # a process is a zombie a moment after its sockets are closed
            return int(self.process.wait(EXIT_WAIT_S))
        except subprocess.TimeoutExpired:
            return None

    def _kill_group(self, group: int) -> None:
        descendants.kill_group(group)
        self._process_reaper.remove_group(group)


def remove_files(folder: str, cache: Cache) -> None:
    """Remove the folder of a fork server and the files beside it."""
    cache.release_sandbox(folder)
    for suffix in ("", ".log", ".error", ".stack", ".lib"):
        remove_tree(folder + suffix)
