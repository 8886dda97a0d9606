"""The worker's side of hosts and slots: starts the processes, passes sockets to them, and hears what becomes of them."""

from __future__ import annotations

import asyncio
import json
import logging
import mmap
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from typing import Any, Callable, Optional

from vinecore.protocol import import_paths
from vinecore.protocol.channel import MessageChannel
from vinecore.protocol.trees import remove_tree
from vineworker import zipapp_builder
from vineworker.library import startup_watchdog
from vineworker.machine import tmpdir
from vineworker.machine.library_disk import LibraryDiskMonitor, WritingProcess
from vineworker.machine.process_reaper import ProcessReaper
from vineworker.machine.tmpdir import TMPDIR_NAME
from vineworker.slot_protocol import FROM_SLOT, PROGRESS
from vineworker.state import events as e
from vineworker.state import instructions as i
from vineworker.storage.cache import Cache
from vineworker.tasks import logs
from vineworker.tasks.sandbox import read_log_tail

log = logging.getLogger("vine_worker")

STARCH_WRAPPER = """
for script in "$0"/env/*; do if [ -e "$script" ]; then . "$script"; fi; done
export PATH="$0/bin:$PATH" LD_LIBRARY_PATH="$0/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$@"
"""
"""Runs a command as a package made by starch runs its own."""
GLIBC_MALLOC_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_TOP_PAD_": str(32 << 20),
}
"""How glibc keeps memory in a library's processes: arrays that come and go do not ask the kernel for zeroed pages each time."""
EXIT_WAIT_S = 0.2
LAST_WORDS = 4000
"""Characters of what a process has written last that are told of its end."""


class ForkServerProcess:
    """One running host, in a process group of its own, so that all that its slots start can be ended with it.

    Parameters
    ----------
    start
        What the state machine asked for.
    folder
        Where the library runs; made by the caller.
    short
        A short path to it.
    happened
        Takes events for the state machine.
    python
        The version of Python whose pickles it will load.
    warden
        Is told of the process groups.
    """

    def __init__(
        self,
        start: i.StartForkServer,
        folder: str,
        short: str,
        cache: Cache,
        happened: Callable[[Any], None],
        python: str,
        warden: ProcessReaper,
    ) -> None:
        self.name, self.folder, self.log = start.host, folder, folder + ".log"
        self._happened, self._warden, self._loop = happened, warden, asyncio.get_running_loop()
        self._library = start.library
        self._failed: Optional[dict[str, Any]] = None
        self._doing = ""  # what of the user's code is running in the process itself
        self.ended = False
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._told: set[str] = set()  # modules that tasks need
        self.slots: dict[int, SlotProcess] = {}
        options = start.library.options if start.library else {}
        # where slots have their temporary folders, unless the library's user has said where
        own = tmpdir.VARIABLES[0] in options.get("env", {})
        self.temporary = "" if own else os.path.join(short, TMPDIR_NAME)
        setup = cache.path(start.library.setup) if start.library else ""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        command = [
            *shlex.split(options.get("command", "")),
            *_python(start.environment, cache),
            "-m",
            "vineworker.library.fork_server",
            str(theirs.fileno()),
        ]
        try:
            with theirs, open(self.log, "ab") as log:
                self.process = warden.start(
                    command, _variables(start.environment, folder, short, options), cwd=folder, stdout=log, stderr=log,
                    pass_fds=[theirs.fileno()],
                )  # fmt: skip
        except BaseException:
            self._control.close()
            raise
        self._loop.add_reader(self._control, self._receive)
        self._look_at_logs()
        # the end of file at its socket may never come: what it has started may have inherited the other end
        threading.Thread(target=self._wait, name="vine-host", daemon=True).start()
        fork = start.library is not None and start.library.exec_mode == "fork"
        self.send(
            {
                "setup": setup,
                "error": folder + ".error",
                "stack": folder + ".stack",
                "fork": fork,
                "python": python,
                "preload": options.get("preload", []),
            }
        )

    def _look_at_logs(self) -> None:
        """Have what the library and its slots print take a bounded part of the disk; of single tasks it counts as theirs."""
        if self.ended:
            return
        logs.shorten(self.log)
        if (where := startup_watchdog.take(self.folder + ".stack")) is not None:
            self._happened(e.HostSlow(self.name, where))
        for slot in self.slots.values():
            if not slot.single:
                logs.shorten(slot.log)
                logs.shorten(slot.errors)
        self._loop.call_later(logs.LOOK_S, self._look_at_logs)

    def send(self, request: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Send a request; a host that is gone will be noticed where it is heard."""
        if self.ended:
            return
        # a host that imports something does not listen, and the socket takes only so much: the rest waits, in order
        self._unsent.append((json.dumps(request).encode(), [os.dup(d) for d in descriptors]))
        if len(self._unsent) == 1:
            self._send()

    def prepare(self, wanted: dict[str, Any]) -> None:
        """Have later forks find what tasks need: modules that the host has not been told of, and sources, which may have changed since."""
        new = [name for name in wanted.get("modules", ()) if name not in self._told]
        sources = wanted.get("sources", ())
        if new or sources:
            self._told.update(new)
            self.send({"modules": new, "sources": sources})

    def _send(self) -> None:
        try:
            while self._unsent:
                data, descriptors = self._unsent[0]
                if descriptors:
                    socket.send_fds(self._control, [data], descriptors)
                else:
                    self._control.send(data)
                self._close_descriptors()
        except BlockingIOError:
            self._loop.add_writer(self._control, self._send)
            return
        except OSError:
            while self._unsent:
                self._close_descriptors()
        self._loop.remove_writer(self._control)

    def disk(self, limit: Callable[[], int], copies: dict[int, int]) -> LibraryDiskMonitor:
        """Return a monitor, for any thread, of the disk space of this process and its slots."""

        def slots() -> dict[int, WritingProcess]:
            return {
                number: WritingProcess(slot.writer, (slot.log, slot.errors))
                for number, slot in list(self.slots.items())
            }

        own = WritingProcess(
            self.process.pid, tuple(self.folder + suffix for suffix in (".log", ".error", ".stack"))
        )
        return LibraryDiskMonitor(self.folder, own, slots, limit, copies)

    def _close_descriptors(self) -> None:
        for descriptor in self._unsent.popleft()[1]:
            os.close(descriptor)

    def _wait(self) -> None:
        try:
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
            self._loop.call_soon_threadsafe(self._hear_all)
        except (ChildProcessError, RuntimeError):  # it has been ended from here, or the loop has ended
            pass

    def _hear_all(self) -> None:
        """Process the remaining messages of a process that has exited, then its exit."""
        while not self.ended and self._receive():
            pass
        self._on_exit()

    def _receive(self) -> bool:
        try:
            data = self._control.recv(1 << 17)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._on_exit()
            return False
        news = json.loads(data)
        if "up" in news:
            self._happened(e.ForkServerReady(self.name, news["wall_s"], news["up"]))
        elif "doing" in news:
            self._doing = news["doing"]
        elif "failed" in news:
            self._failed = news
        elif "forked" in news:
            self._forked(self.slots.get(news["forked"]), news["pid"], news["single"])
        elif "exited" in news:
            slot = self.slots.pop(news["exited"], None)
            if slot is not None:
                if slot.pid is not None:
                    self._warden.unwatch(slot.pid)
                slot.exited(
                    {
                        "reason": news["reason"],
                        "max_rss_mb": news["max_rss_mb"],
                        "log": "" if slot.is_over else slot.last_words(),
                    }
                )
        if self._failed is not None:
            self._on_exit()
        return True

    def _forked(self, slot: Optional[SlotProcess], pid: int, single: bool) -> None:
        if single:
            self._warden.watch(pid)
        if slot is not None:
            slot.started(pid)

    def _on_exit(self) -> None:
        if self.ended:
            return
        payload, code = b"", self._exit_code()
        self.close("its library's process ended")
        if self._failed is not None:
            reason = self._failed["failed"]
            try:
                with open(self.folder + ".error", "rb") as file:
                    payload = file.read()
            except FileNotFoundError:
                pass
        else:
            how = (
                "ended"
                if code is None
                else f"was killed by signal {-code}"
                if code < 0
                else f"ended with code {code}"
            )
            when = f" while {self._doing}" if self._doing else ""
            said = read_log_tail(self.log, 2000).strip()
            reason = f"the library's process {how}{when}{f'; it has said: {said}' if said else ''}"
        self._happened(e.ForkServerExited(self.name, reason, self._failed is not None, payload))

    def _exit_code(self) -> Optional[int]:
        try:
            return int(
                self.process.wait(EXIT_WAIT_S)
            )  # its sockets are closed a moment before it is a zombie
        except subprocess.TimeoutExpired:
            return None

    def close(self, reason: str = "its library was stopped") -> None:
        """End the process, its slots, and all that they have started."""
        if self.ended:
            return
        self.ended = True
        self._loop.remove_reader(self._control)
        self._loop.remove_writer(self._control)
        self._control.close()
        while self._unsent:
            self._close_descriptors()
        slots, self.slots = self.slots, {}
        for slot in (
            slots.values()
        ):  # before their host: only while that has not waited for them their numbers are theirs
            if slot.pid is not None:
                self._kill(slot.pid)
        self._kill(self.process.pid)
        self.process.wait()
        self._warden.ended(self.process.pid)
        self._warden.end_strays()
        for slot in slots.values():
            slot.exited({"reason": reason, "log": slot.last_words()})

    def _kill(self, group: int) -> None:
        try:
            os.killpg(group, signal.SIGKILL)
        except (
            ProcessLookupError,
            PermissionError,
        ):  # the latter is what some systems say of a group of zombies
            pass
        self._warden.unwatch(group)


def remove_files(folder: str, cache: Cache) -> None:
    """Remove what a host has left on the disk: its folder and what is beside it."""
    cache.release(folder)
    for suffix in ("", ".log", ".error", ".stack", ".lib"):
        remove_tree(folder + suffix)


class SlotProcess:
    """One slot: its channel, and the file in which it leaves word of what it runs.

    Attributes
    ----------
    forked
        Called with the process number of a single task.
    """

    def __init__(
        self, number: int, host: ForkServerProcess, output: str, happened: Callable[[Any], None]
    ) -> None:
        self.id, self.host = number, host
        self.single = bool(output)
        self.log = output or os.path.join(host.folder, f".vine-stdout-{number}")
        self.errors = "" if output else os.path.join(host.folder, f".vine-stderr-{number}")
        self.temporary = (
            os.path.join(host.temporary, str(number)) if host.temporary and not self.single else ""
        )
        self._happened = happened
        self._exit: Optional[dict[str, Any]] = None
        self.pid: Optional[int] = None  # of a single task, which leads a process group
        self.writer: Optional[int] = None  # the process of a library's slot
        self.copies: dict[int, int] = {}  # what in the folder of a single task are inputs
        self.forked: Callable[[int], None] = lambda _pid: None
        self._closed = self._told = self._answered = False
        self._file = _shared_file()
        self._file.write(PROGRESS.pack(-1, 0.0))
        self._file.flush()
        self._progress = mmap.mmap(self._file.fileno(), PROGRESS.size)
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.channel = MessageChannel(FROM_SLOT, self._heard, self._lost, unsent=self._not_sent)
        host.slots[number] = self

    async def connect(self) -> None:
        """Attach the channel to the loop."""
        await asyncio.get_running_loop().create_connection(lambda: self.channel, sock=self._ours)

    def fork(self, sandbox: str = "") -> None:
        """Ask the host for the process."""
        if self.host.ended:
            self.exited({"reason": "its library's process ended"})
            return
        request = {
            "slot": self.id,
            "sandbox": sandbox,
            "output": self.log,
            "errors": self.errors,
            "single": self.single,
            "temporary": self.temporary,
        }
        self.host.send(request, (self._theirs.fileno(), self._file.fileno()))
        self._theirs.close()
        self._file.close()  # the map of it stays

    def started(self, pid: int) -> None:
        """Record the process id of the slot."""
        if self.single:
            self.pid = pid
            self.forked(pid)
        else:
            self.writer = pid

    def kill(self) -> None:
        """Have the host kill the process; it knows best which one it is."""
        self.host.send({"kill": self.id})

    def began(self, task: int) -> Optional[float]:
        """When the process has begun with a call that is timed, by the clock of `time.monotonic`; None if it is not at that."""
        if self._told:
            return None
        running, began = PROGRESS.unpack_from(self._progress, 0)
        return began if running == task else None

    def last_words(self) -> str:
        """Return the end of the output of the process."""
        words = (read_log_tail(path, LAST_WORDS) for path in (self.log, self.errors) if path)
        return "".join(words)[-LAST_WORDS:]

    def cancel_start(self, reason: str) -> None:
        """There will be no process after all."""
        self.host.slots.pop(self.id, None)
        self.exited({"reason": reason})

    @property
    def is_over(self) -> bool:
        """Whether this was for one task, which has answered: nobody asks for its last words."""
        return self.single and self._answered

    def _heard(self, replies: list[Any]) -> None:
        self._answered = True
        self._happened(e.CallsReturned(self.id, replies))

    def _not_sent(self, message: Any, reason: str) -> None:
        """Something could not be sent to the process, which would be waited for in vain: its end is noticed."""
        log.error(
            "slot %d ends, because a %s cannot be sent to it: %s", self.id, type(message).__name__, reason
        )
        self.kill()

    def _lost(self, _reason: str) -> None:
        self._closed = True
        self._report_if_exited()

    def exited(self, info: dict[str, Any]) -> None:
        """Record the exit that the fork server reported, or the loss of the fork server."""
        self._exit = info
        self._theirs.close()  # where nobody has forked: the end of the channel is waited for
        if not self._closed:
            self._end_channel()
        self._report_if_exited()

    def _end_channel(self) -> None:
        """Let what the process has written come, and no more: others may have inherited its end of the socket."""
        loop = asyncio.get_running_loop()
        try:
            if sys.platform == "linux":  # where what is in the socket survives that
                self._ours.shutdown(socket.SHUT_RD)
        except OSError:  # it is closed
            pass
        # calls that nobody reads any more must not be waited for
        loop.call_later(EXIT_WAIT_S, self.channel.abort, "its process has ended")

    def _report_if_exited(self) -> None:
        """Report the exit when the process is gone and its socket is at its end.

        Replies that are still in the socket come before the report.
        """
        if self._exit is None or not self._closed or self._told:
            return
        self._told = True
        if not self.single:
            for path in (self.log, self.errors):
                remove_tree(path)
        running, _began = PROGRESS.unpack_from(self._progress, 0)
        self._progress.close()
        self._file.close()
        self._happened(e.SlotExited(self.id, running, self._exit))


def _shared_file() -> Any:
    """Create a file without a name, in memory if possible.

    A full disk must not keep slots from being started.
    """
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("vine-progress"), "r+b")
    return tempfile.TemporaryFile()


def _python(environment: str, cache: Cache) -> list[str]:
    """Return the command that starts the Python of an environment, or the worker's own."""
    if not environment:
        return [sys.executable]
    folder = cache.path(environment)
    python = os.path.join(folder, "bin", "python")
    wrapper = [
        name for name in ("run_in_env", "bin/run_in_env") if os.access(os.path.join(folder, name), os.X_OK)
    ]
    if wrapper:  # as poncho packs them
        return [os.path.join(folder, wrapper[0]), "python"]
    if not os.access(python, os.X_OK):
        msg = f"the environment {environment} has no bin/python that runs here: pack one with conda-pack, venv-pack or poncho_package_create"
        raise OSError(msg)
    return [python]


def environment_prefix(environment: str, cache: Cache) -> list[str]:
    """Return the command that runs a shell command inside an environment.

    This is poncho's wrapper, or a shell that puts the environment's programs first.
    """
    if not environment:
        return []
    folder = cache.path(environment)
    if os.access(os.path.join(folder, "run.sh"), os.X_OK):
        return ["/bin/sh", "-c", STARCH_WRAPPER, folder]
    python = _python(environment, cache)
    if len(python) > 1:
        return python[:1]
    return [
        "/usr/bin/env",
        f"PATH={os.path.join(folder, 'bin')}{os.pathsep}{os.environ.get('PATH', '')}",
        f"VIRTUAL_ENV={folder}",
    ]


def _variables(environment: str, folder: str, short: str, options: dict[str, Any]) -> dict[str, str]:
    variables = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    os.makedirs(os.path.join(folder, TMPDIR_NAME), exist_ok=True)
    variables.update(dict.fromkeys(tmpdir.VARIABLES, os.path.join(short, TMPDIR_NAME)))
    variables = import_paths.lend_python_path(_import_path(environment, folder), variables)
    variables["VINE_SANDBOX"] = folder
    cores = str(max(1, int(options["cores"]))) if options.get("cores") else ""
    if cores:
        # the slots share the library's cores; each call counts on one unless the user says otherwise
        for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM"):
            variables.setdefault(f"{name}_NUM_THREADS", "1")
        variables["CORES"] = cores
    for name, value in GLIBC_MALLOC_SETTINGS.items():
        variables.setdefault(name, value)
    chosen = options.get("env", {})
    variables.update(chosen)
    if "PYTHONPATH" in chosen:
        variables[import_paths.USER_PYTHONPATH] = chosen["PYTHONPATH"]
    return variables


def _import_path(environment: str, folder: str) -> str:
    """Where a host finds this code: the worker's own path, or copies beside the sandbox for an environment that has other packages."""
    home = zipapp_builder.zipapp_path()
    if not environment and not home:
        return os.pathsep.join(p for p in sys.path if p)
    library = folder + ".lib"
    zipapp_builder.copy_to(library)
    others = [] if environment else [p for p in sys.path if p and p != home]
    return os.pathsep.join([library, *others])
