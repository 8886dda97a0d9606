"""Run the fork server of a library: import its modules and build its context, then fork slots.

It starts as ``python -m vineworker.library.fork_server FD`` with one end of a sequenced-packet
socket pair. The worker sends requests, each a JSON object. The first one is the setup::

    {
        "setup": path or "",
        "error": path,
        "stack": path,
        "fork": bool,
        "python": version,
        "preload": [names],
        "compat": bool,
    }

A library in another language also has ``program``: `vineworker.library.library_program`. The others
fork a slot (with its socket and its progress file as descriptors), import modules and
compile sources before the next fork, or kill a slot and all that a Python task has started::

    {
        "slot": number,
        "sandbox": folder,
        "single": bool,
        "output": path,
        "errors": path or "",
        "temporary": folder or "",
    }
    {"modules": [names], "sources": [paths]}
    {"kill": number}

The fork server reports ``{"doing": text}`` before code that may end the process, and::

    {"up": versions, "wall_s": s}
    {"forked": slot, "pid": n, "single": bool}
    {"failed": reason, "final": true}
    {"exited": slot, "reason": text, "max_rss_mb": n}

A setup is a value (see `vinecore.protocol.serialization.values`): ``{"modules": [...],
"functions": {name: function}, "context": (function, args, kwargs) or None, "context_per_slot":
bool, "config": {...}}``. The context is built once before slots are forked, or in each slot.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Callable, Optional

from vinecore.protocol import (
    import_paths,
    library_context,
    program_folders,
    taskvine_modules,
    user_modules,
)
from vinecore.protocol import used_resources as usage
from vinecore.protocol.messages import PICKLE_SENSITIVE_PACKAGES
from vinecore.protocol.serialization import exceptions, process_pools, random_seeds, values
from vineworker.library import (
    captured_output,
    fork_state,
    fresh_imports,
    interrupts,
    process_state,
    slot,
    startup_watchdog,
    use_recorder,
)
from vineworker.library.captured_output import CapturedOutput
from vineworker.library.program_folder import add_import_paths
from vineworker.machine import descendants, tmpdir


class ForkServer:
    """Loads a library and forks its slots."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._functions: dict[str, Callable[..., Any]] = {}
        self._children: dict[int, int] = {}  # pid -> slot
        # those that lead a process group
        self._process_group_leaders: set[int] = set()
        # processes that the user's modules or context have started here
        self._own_processes: set[int] = set()
        # modules that were to be imported here, whether or not that was possible
        self._attempted_imports: set[str] = set()
        self._fork_calls = False
        # what each slot has to call for itself
        self._slot_context: Any = None
        self._error = self._stack = ""
        # of a library in another language
        self._programs: Any = None
        self._pickled = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        # a batch system may ask all processes of a job to end: the worker answers for this one. Not
        # ignored, because what is started here would inherit that
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _signal, _frame: None)
        descendants.become_subreaper()

    def serve(self) -> None:
        """Handle requests until the worker closes the socket."""
        while True:
            watched: list[Any] = [self._control, self._wake_read]
            writable: list[Any] = []
            if self._programs is not None:
                sources, writable = self._programs.watched()
                watched += sources
            readable, ready, _ = select.select(watched, writable, [])
            if self._wake_read in readable:
                os.read(self._wake_read, 4096)
                self._reap_children()
                if self._programs is not None:
                    # a program may have started again, with other pipes
                    continue
            if self._programs is not None:
                self._use_programs(self._programs.handle, [*readable, *ready])
            if self._control in readable:
                data, descriptors, _flags, _address = socket.recv_fds(self._control, 1 << 17, 2)
                if not data:
                    return
                self._handle_request(json.loads(data), list(descriptors))

    def _handle_request(self, request: dict[str, Any], descriptors: list[int]) -> None:
        if "slot" in request:
            self._fork_slot(request, descriptors)
        elif "kill" in request:
            self._kill_slot(request["kill"])
        elif "modules" in request:
            new = [
                name
                for name in request["modules"]
                if name not in sys.modules and name not in self._attempted_imports
            ]
            if new:
                with startup_watchdog.report_slow_block(self._stack):
                    self._preload_modules(new)
            if fresh_imports.compile_sources(request["sources"]):
                _prepare_to_fork()
        else:
            self._set_up(request)

    def _set_up(self, request: dict[str, Any]) -> None:
        start = time.monotonic()
        self._fork_calls = bool(request["fork"])
        self._error, self._stack = request["error"], request["stack"]
        own = f"{sys.version_info[0]}.{sys.version_info[1]}"
        if request["python"] and request["python"] != own:
            text = (
                f"it runs Python {own}, the manager {request['python']}: functions pickled by one "
                "cannot be loaded by the other"
            )
            self._send(
                {
                    "failed": f"{text}. Use an environment, or a worker, with Python {request['python']}",
                    "final": True,
                }
            )
            return
        if importlib.util.find_spec("cloudpickle") is None:
            text = (
                f"its Python, {sys.executable}, has no cloudpickle, without which it can load no "
                "functions: install cloudpickle there"
            )
            self._send({"failed": f"{text}, or use an environment that has it", "final": True})
            return
        if request["compat"]:
            taskvine_modules.install_finder()
        try:
            with startup_watchdog.report_slow_block(self._stack):
                if request["setup"]:
                    self._report_activity("it loaded its functions")
                    self._load_setup(values.load_file(request["setup"]))
                self._preload_modules(request["preload"])
        except BaseException as error:  # noqa: BLE001 - whatever the user's modules raise is told, not lost
            self._report_failure(error)
            return
        if "library_program" in request:
            self._report_activity("it started its program")
            if self._use_programs(self._start_programs, request["library_program"]) is None:
                return
        self._own_processes.update(descendants.list_with_descendants(descendants.children_of(os.getpid())))
        _prepare_to_fork()
        self._report_activity("")
        self._send({"up": package_versions(), "wall_s": time.monotonic() - start})

    def _start_programs(self, about: dict[str, Any]) -> bool:
        # only such libraries need this
        from vineworker.library.library_program import LibraryPrograms

        self._pickled = about["pickled"]
        self._programs = LibraryPrograms(about)
        return True

    def _use_programs(self, use: Callable[..., Any], *arguments: Any) -> Any:
        """Call something that may have to start a program; report a failure, which ends the library."""
        from vineworker.library.library_program import ProgramFailed

        try:
            with startup_watchdog.report_slow_block(self._stack):
                return use(*arguments)
        except ProgramFailed as error:
            self._send({"failed": str(error), "final": error.final})
            return None

    def _report_activity(self, what: str) -> None:
        """Report what runs now; if the process ends, the worker says that it ended there."""
        self._send({"doing": what})

    def _report_failure(self, error: BaseException) -> None:
        """Report an exception of the user's code; several slots may do so at the same time."""
        temporary = f".vine-error-{os.getpid()}"
        with open(temporary, "wb") as file:
            file.write(exceptions.dump_exception(error))
        os.replace(temporary, self._error)
        self._send({"failed": exceptions.summarize_exception(error), "final": True})

    def _preload_modules(self, names: list[str]) -> None:
        """Import these modules, except the user's own, which each process imports for itself."""
        new = [name for name in names if name not in sys.modules and name not in self._attempted_imports]
        before = set(descendants.children_of(os.getpid())) if new else set()
        for name in new:
            self._attempted_imports.add(name)
            if not user_modules.is_package_module(name):
                continue
            self._report_activity(f"it imported {name}")
            try:
                importlib.import_module(name)
            except BaseException:  # noqa: BLE001, S110 - only a head start: the task that needs it will say what is wrong
                pass
        if new:
            self._report_activity("")
            self._own_processes.update(set(descendants.children_of(os.getpid())) - before)
            # a collection takes long where much is loaded, and there is one request for every few
            # tasks
            _prepare_to_fork()

    def _load_setup(self, setup: dict[str, Any]) -> None:
        if "program" in setup:
            add_import_paths(setup["program"], os.getcwd())
        import_modules(setup["modules"], self._report_activity)
        self._report_activity("it prepared its functions")
        self._functions = dict(setup["functions"])
        for function in setup.get("before", ()):
            function()
        if setup.get("context_per_slot"):
            self._slot_context = setup["context"]
        elif setup.get("context") is not None:
            name = getattr(setup["context"][0], "__qualname__", "its function")
            self._report_activity(f"it built its context with {name}")
            build_context(setup["context"], self._functions)

    def _fork_slot(self, request: dict[str, Any], descriptors: list[int]) -> None:
        flush = captured_output.flush_streams
        flush()
        channel, progress = descriptors
        program = None
        if self._programs is not None and not request["single"]:
            program = self._use_programs(self._programs.attach, request["slot"])
            if program is None:
                return
        pid = os.fork()
        if pid:
            if program is not None:
                program.close()
            self._children[pid] = request["slot"]
            if request["single"]:
                self._process_group_leaders.add(pid)
            self._send({"forked": request["slot"], "pid": pid, "single": request["single"]})
            os.close(channel)
            os.close(progress)
            return
        status = 1
        try:
            descendants.die_with_parent()
            descendants.become_subreaper()
            fork_state.reseed_generators()
            _signal.set_wakeup_fd(-1)
            _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
            _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
            interrupts.install_handler()
            if request["temporary"]:
                tmpdir.use_folder(request["temporary"])
            if self._slot_context is not None and not self._build_slot_context():
                return
            self._control.close()
            self._become_slot(request, channel, progress, program)
            status = 0
        except BaseException:  # noqa: BLE001 - users read the library's log
            sys.excepthook(*sys.exc_info())
        finally:
            flush()
            os._exit(status)

    def _build_slot_context(self) -> bool:
        """Build the context of one slot; if that fails, end the library, as before the fork.

        Return whether the slot can start.
        """
        try:
            with startup_watchdog.report_slow_block(self._stack):
                build_context(self._slot_context, self._functions)
        except BaseException as error:  # noqa: BLE001 - whatever the user's function raises is told, not lost
            self._report_failure(error)
            return False
        if self._fork_calls:
            _prepare_to_fork()
        return True

    def _become_slot(
        self, request: dict[str, Any], channel: int, progress: int, program: Optional[socket.socket]
    ) -> None:
        if not request["single"]:
            near, channel = channel, process_state.duplicate_high(channel)
            os.close(near)
        with socket.socket(fileno=channel) as sock:
            if request["single"]:
                # the task and all it starts can be killed together
                os.setsid()
                os.chdir(request["sandbox"])
                # as for a script that was started there
                sys.path.insert(0, request["sandbox"])
                captured_output.redirect_output(request["output"], request["errors"])
                slot.run_python_task(sock, progress)
            else:
                own = captured_output.redirect_output(request["output"], request["errors"])
                captured = CapturedOutput() if own else None
                folder = request["temporary"]
                if program is not None:
                    from vineworker.library.program_slot import ProgramFunctions, ProgramSlot

                    functions = ProgramFunctions(program, self._pickled)
                    ProgramSlot(sock, functions, progress, captured, folder).serve()
                    return
                slot.Slot(sock, self._functions, progress, self._fork_calls, captured, folder).serve()

    def _kill_slot(self, number: int) -> None:
        # not reaped yet, so the pid is still its own
        for pid, slot_number in self._children.items():
            if slot_number == number:
                try:
                    if os.getpgid(pid) == pid:
                        os.killpg(pid, signal.SIGKILL)
                    else:
                        os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def _reap_children(self) -> None:
        """Wait for exited children, and kill the processes that these have left behind.

        Those are children of this process now.
        """
        while (ended := _find_exited_child()) is not None:
            pid = ended.si_pid
            if pid in self._process_group_leaders:
                self._process_group_leaders.discard(pid)
                descendants.kill_group(pid)
            known = self._own_processes | self._children.keys()
            if self._programs is not None:
                known |= set(self._programs.pids)
            if descendants.can_have_strays(known):
                descendants.kill_strays(known)
            _pid, status, usage = os.wait4(pid, 0)
            number = self._children.pop(pid, None)
            if number is not None:
                self._send(
                    {
                        "exited": number,
                        "reason": slot.describe_status(status),
                        "max_rss_mb": usage.ru_maxrss // 1024,
                    }
                )
            elif self._programs is not None:
                self._use_programs(self._programs.on_exited, pid, status)

    def _send(self, news: dict[str, Any]) -> None:
        try:
            self._control.send(json.dumps(news).encode())
        except OSError:
            sys.exit(0)  # the worker is gone


def import_modules(names: list[str], begins: Callable[[str], None]) -> None:
    """Import the modules of a library, and report each before it is imported."""
    for name in names:
        begins(f"it imported {name}")
        importlib.import_module(name)


def build_context(about: Any, functions: dict[str, Callable[..., Any]]) -> None:
    """Call the context function, and give its variables to the functions."""
    function, args, kwargs = about
    variables = function(*args, **kwargs)
    library_context.context_variables.update(variables)
    for user_function in functions.values():
        getattr(user_function, "__globals__", {}).update(variables)


def _prepare_to_fork() -> None:
    """Collect garbage and freeze it, before a fork.

    A collection in a slot must not write to pages that are shared with this process, as each write
    copies a page.
    """
    gc.collect()
    fork_state.find_generators()
    gc.freeze()


def _find_exited_child() -> Any:
    """Return a child that has exited, without waiting for it: until then its number is its own."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter to pickles."""
    found = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    metadata = importlib.import_module("importlib.metadata")
    for name in PICKLE_SENSITIVE_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def main() -> None:
    """Run a fork server on the descriptor given on the command line."""
    descendants.die_with_parent()
    import_paths.restore_python_path()
    # each fork wants to know
    program_folders.running_kernel()
    random_seeds.watch_seeding()
    process_pools.prepare_pools()
    fresh_imports.wrap_loader()
    captured_output.set_line_buffering()
    if os.environ.pop(usage.RECORDS, ""):
        use_recorder.start_recording()
    ForkServer(socket.socket(fileno=int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
