"""Run calls one after another, in a process forked from a library's fork server.

The fork server has imported what the calls need. The slot reads calls from its socket and replies
in the same order. Replies of short calls are sent together, at the latest `REPLY_BATCH_S` after the
first. Before each call the slot writes the task's number to a small shared file. If the slot dies,
the worker knows which call was running.
"""

from __future__ import annotations

import base64
import mmap
import os
import resource
import socket
import struct
import sys
import time
from functools import partial
from itertools import islice
from typing import Any, Callable, Union

from vinecore.protocol import INLINE_LIMIT, user_modules
from vinecore.protocol.frames import FrameReader, encode
from vinecore.protocol.serialization import exceptions, values
from vinecore.protocol.serialization.placeholders import (
    LazyInput,
    LazyValue,
    ResultWithMetadata,
    substitute_placeholders,
)
from vineworker.library import (
    captured_output,
    fork_state,
    forked_calls,
    fresh_imports,
    interrupts,
    use_recorder,
)
from vineworker.library.call_state import CallState
from vineworker.library.captured_output import CapturedOutput
from vineworker.library.program_folder import StartingFolder
from vineworker.library.results import dump_result, result_bytes, write_parts
from vineworker.machine import descendants, tmpdir
from vineworker.slot_protocol import (
    IMPORT_PROGRESS,
    MAX_IN_FLIGHT,
    PROGRESS,
    TO_SLOT,
    Call,
    DropHeldResults,
    DropShared,
    ObjectData,
    Reply,
    SpillResults,
)

REPLY_BATCH_S = 0.001
# the first part of `PROGRESS`
RUNNING_TASK = struct.Struct(">q")
MAX_REPORTED_MODULES = 200


# made before the fork; there is one slot in a process
_reader = FrameReader(TO_SLOT, trusted=True)


class Slot:
    """Runs calls for one worker.

    Parameters
    ----------
    sock
        The socket to the worker.
    functions
        The library's functions by name.
    progress
        A file of the size of `PROGRESS`, shared with the worker.
    fork
        Run every call in a child of its own.
    captured
        Captures the output of calls, if this process has output files of its own.
    folder
        The slot's folder for temporary files, in which each child gets its own; "" if there is
        none.
    """

    def __init__(
        self,
        sock: socket.socket,
        functions: dict[str, Callable[..., Any]],
        progress: int,
        fork: bool,
        captured: CapturedOutput | None = None,
        folder: str = "",
    ) -> None:
        self._sock, self._functions, self._fork = sock, functions, fork
        self._progress = mmap.mmap(progress, PROGRESS.size + IMPORT_PROGRESS.size)
        # a worker cannot ask a process that hangs
        self._mark_import = partial(IMPORT_PROGRESS.pack_into, self._progress, PROGRESS.size)
        fresh_imports.report_imports(self._mark_import)
        self._shared: dict[str, Any] = {}
        # came as messages, not loaded yet
        self._raw_shared: dict[str, bytes] = {}
        self._raw_inputs: dict[str, bytes] = {}  # of the next call
        # task -> its result, or the file it has written
        self._recent_results: dict[int, Union[bytes, str]] = {}
        # task -> where to write its result, and its parts
        self._held: dict[int, tuple[str, list[Any]]] = {}
        self._replies: list[Reply] = []
        self._first_reply = 0.0
        self._folder = StartingFolder()
        self._captured = captured
        self._temporary = os.path.join(folder, "call") if folder else ""
        # where calls share this process
        self._state: CallState | None = None
        # a call has left this process as no other may find it
        self._is_ending = False
        if not fork:
            captured_output.record_warnings()

    def serve(self) -> None:
        """Handle messages until the worker closes the socket."""
        if not self._fork:
            self._state = CallState()
        while True:
            data = self._sock.recv(1 << 18)
            if not data:
                return
            for message in _reader.feed(data):
                self.handle(message)
                if self._is_ending:
                    return
            self._send_replies()

    def handle(self, message: Any) -> None:
        """Handle one message."""
        kind = type(message)
        if kind is Call:
            self._handle_call(message)
        elif kind is ObjectData:
            raw = self._raw_shared if message.shared else self._raw_inputs
            raw[message.name] = message.payload
        elif kind is SpillResults:
            for task in message.tasks:
                self._spill_result(task)
        elif kind is DropHeldResults:
            for task in message.tasks:
                self._held.pop(task, None)
        elif kind is DropShared:
            for name in message.names:
                self._shared.pop(name, None)
                self._raw_shared.pop(name, None)

    def mark_running(self, call: Call) -> None:
        """Write to the shared file that this call runs."""
        if "timed" in call.options:
            PROGRESS.pack_into(self._progress, 0, call.task, time.monotonic())
        else:
            RUNNING_TASK.pack_into(self._progress, 0, call.task)

    def _handle_call(self, call: Call) -> None:
        self.mark_running(call)
        if call.options.get("fork", self._fork):
            reply = self._run_in_child(call)
        else:
            if self._state is None:
                self._state = CallState()
            reply = self._state.run(self.run_call, call)
            changed = self._state.restore()
            if changed is not None:
                self._end_slot(call, reply, changed)
                return
        self.complete_reply(reply)
        self._raw_inputs.clear()
        if reply.kind == "done" and "held" not in reply.info:
            self._recent_results[call.task] = reply.payload if reply.size <= INLINE_LIMIT else call.result
            if len(self._recent_results) > MAX_IN_FLIGHT:
                del self._recent_results[next(iter(self._recent_results))]
        RUNNING_TASK.pack_into(self._progress, 0, -1)
        self._queue_reply(reply)

    def _end_slot(self, call: Call, reply: Reply, changed: str) -> None:
        """Send the last reply; the worker has another process run the calls after this one."""
        self._is_ending = True
        if reply.info.pop("held", None):
            _path, parts = self._held.pop(call.task)
            reply.info["digest"] = write_parts(call.result, parts)
        try:
            self.complete_reply(reply)
        except OSError:
            # where that would be read is closed
            pass
        reply.info["ends"] = changed
        self._replies.append(reply)
        self._send_replies()
        # until now it is this call's fault if there is no answer
        RUNNING_TASK.pack_into(self._progress, 0, -1)

    def complete_reply(self, reply: Reply) -> None:
        """Add to a reply what is known only after the call."""
        self._folder.add_to_reply(reply)
        captured_output.move_warnings_to(reply.info)
        if self._captured is not None:
            self._captured.move_output_to(reply.info)

    def _queue_reply(self, reply: Reply) -> None:
        now = time.monotonic()
        if not self._replies:
            self._first_reply = now
        self._replies.append(reply)
        if now - self._first_reply > REPLY_BATCH_S or reply.wall_s > REPLY_BATCH_S or len(self._replies) > 64:
            self._send_replies()

    def _send_replies(self) -> None:
        if self._replies:
            replies, self._replies = self._replies, []
            self._sock.sendall(b"".join(encode(replies)))  # type: ignore[arg-type]

    def _hold_result(self, call: Call, parts: list[Any], size: int) -> bool:
        """Hold a result in memory, if the worker requests that and the limits allow it."""
        taken = sum(values.size_of(other) for _path, other in self._held.values())
        room, most = call.options.get("hold", (0, 0))
        if taken + size > room or size > most:
            return False
        self._held[call.task] = call.result, parts
        return True

    def _spill_result(self, task: int) -> None:
        """Write a held result to disk."""
        path, parts = self._held.pop(task)
        try:
            digest = write_parts(path, parts)
        except OSError as error:
            self._queue_reply(
                Reply(task, "unwritten", 0, 0.0, {"reason": exceptions.summarize_exception(error)}, b"")
            )
        else:
            self._queue_reply(Reply(task, "wrote", values.size_of(parts), 0.0, {"digest": digest}, b""))

    def _run_in_child(self, call: Call) -> Reply:
        """Run a call in a child, so that changes of its process end with it."""
        start = time.monotonic()
        read, write = os.pipe()
        known = descendants.children_of(os.getpid()) if descendants.has_children() else ()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(read)
                descendants.die_with_parent()
                descendants.become_subreaper()
                fork_state.reseed_generators()
                if self._temporary:
                    tmpdir.use_folder(self._temporary)
                reply = self.run_call(call)
                descendants.kill_all()
                with os.fdopen(write, "wb") as pipe:
                    pipe.write(b"".join(encode([reply])))  # type: ignore[list-item]
                captured_output.flush_streams()
                status = 0
            finally:
                # whatever happens, the child must not go on as if it were the slot
                os._exit(status)
        os.close(write)
        try:
            answer = forked_calls.wait_for_reply(read, pid)
        finally:
            os.close(read)
        _pid, status, _usage = os.wait4(pid, 0)
        # the child may have ended in the middle of an import
        self._mark_import(0.0, b"")
        descendants.kill_all(known)
        if self._temporary:
            tmpdir.remove_folder(self._temporary)
        if answer is not None:
            return answer
        return Reply(
            call.task, "crash", 0, time.monotonic() - start, {"reason": describe_status(status)}, b""
        )

    def run_call(self, call: Call) -> Reply:
        """Load what a call needs, call the function, and serialize its result or exception."""
        start = time.perf_counter()
        interrupts.reset_flag()
        # inputs that the function itself loads
        later: set[int] = set()
        fed: tuple[str, int] | None = call.options.get("fed")
        if fed is not None and fed[1] not in self._recent_results:
            return Reply(call.task, "unfed", 0, 0.0, {}, b"")
        try:
            try:
                recorder, shared = self._prepare_call(call)
                args, kwargs = values.loads(call.payload)
                later = {arg.index for arg in args if type(arg) is LazyInput}
                inputs = [
                    LazyValue(partial(self._open_input, name, path, call))
                    if number in later
                    else values.loads(self._open_input(name, path, call))
                    for number, (name, path) in enumerate(call.inputs)
                ]
            except FileNotFoundError as error:
                lost = _lost_inputs_reply(call, error)
                if lost is None:
                    raise
                return lost
            function = self._functions.get(call.function)
            if function is None:
                function = self._find_function(call)
            args, kwargs = substitute_placeholders(args, kwargs, shared, inputs)
            del inputs
            try:
                result = forked_calls.call_function(function, args, kwargs, captured_output.flush_streams)
                used = recorder.end_call(call, self._raw_inputs) if recorder is not None else []
            finally:
                self._folder.collect_created_files()
            del args, kwargs
            info: dict[str, Any] = {}
            if type(result) is ResultWithMetadata:
                info["note"] = base64.b64encode(result.extra).decode()
                result = result.value
            parts = [result_bytes(result)] if call.options.get("raw") else dump_result(result)
            used += recorder.find_temporary_name(parts) if recorder is not None else []
            if used:
                info["used"] = used
            size = values.size_of(parts)
            payload = b""
            if size <= INLINE_LIMIT:
                payload = b"".join(parts)
            elif self._hold_result(call, parts, size):
                info["held"] = True
            else:
                info["digest"] = write_parts(call.result, parts)
        # the caller gets whatever the user's code raised, SystemExit and KeyboardInterrupt included
        except BaseException as error:  # noqa: BLE001
            interrupts.raise_if_signalled(error)
            use_recorder.cancel_call(call)
            if later and isinstance(error, FileNotFoundError) and (lost := _lost_inputs_reply(call, error)):
                return lost
            return Reply(
                call.task,
                "exception",
                0,
                time.perf_counter() - start,
                {"text": exceptions.summarize_exception(error)},
                exceptions.dump_exception(error),
            )
        return Reply(call.task, "done", size, time.perf_counter() - start, info, payload)

    def _prepare_call(self, call: Call) -> tuple[use_recorder.UseRecorder | None, list[Any]]:
        """Enter the folder of a call, and load its shared objects."""
        known = len(self._shared)
        program = self._load_shared(*call.shared[-1]) if "program" in call.options else None
        # before anything else is loaded: that may import the program's modules
        moved = self._folder.enter_folder(program)
        recorder = use_recorder.begin_call(call) if "record" in call.options else None
        # before the arguments: what a program has registered may decide what they are loaded as
        shared = [self._load_shared(name, path) for name, path in call.shared]
        if self._state is not None and (moved or len(self._shared) > known):
            self._state.accept_current()
        if "env" in call.options:
            set_variables(call.options["env"])
            # which a call with a sandbox always has
            if call.sandbox:
                os.chdir(call.sandbox)
        return recorder, shared

    def _find_function(self, call: Call) -> Callable[..., Any]:
        if call.function in self._shared:
            return self._shared[call.function]  # type: ignore[no-any-return]
        known = ", ".join(sorted(self._functions)) or "none"
        msg = f"this library has no function {call.function!r}; it has: {known}"
        raise LookupError(msg)

    def _load_shared(self, name: str, path: str) -> Any:
        if name not in self._shared:
            self._shared[name] = values.load_file(path) if path else values.loads(self._raw_shared[name])
            raw = self._raw_shared.pop(name, None)
            if raw is not None:
                use_recorder.keep_shared_object(name, raw)
        return self._shared[name]

    def _open_input(self, name: str, path: str, call: Call) -> values.Readable:
        """Return an input.

        The result of an earlier call of this slot is in memory, or at its path if the worker has
        stored it.
        """
        for held, task in call.options.get("held", ()):
            # a copy: the reader may write to its buffers
            if name == held:
                return bytearray().join(self._held[task][1])
        fed: tuple[str, int] | None = call.options.get("fed")
        if fed and name == fed[0]:
            made = self._recent_results[fed[1]]
            if isinstance(made, bytes):
                return made
            try:
                return values.map_object(made)
            except FileNotFoundError:
                pass
        return values.map_object(path) if path else self._raw_inputs[name]


def _lost_inputs_reply(call: Call, error: FileNotFoundError) -> Reply | None:
    """Return a reply with the inputs that are missing on the disk, or None if none is.

    They were removed by a clean-up of the disk, which is not the task's fault.
    """
    lost = [name for name, path in (*call.shared, *call.inputs) if path and not os.path.exists(path)]
    if not lost:
        return None
    return Reply(call.task, "crash", 0, 0.0, {"reason": f"an input is gone: {error}", "lost": lost}, b"")


def set_variables(variables: dict[str, Union[str, None]]) -> None:
    """Set the environment variables of a call."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "TZ" in variables:
        time.tzset()
    if not set(tmpdir.VARIABLES).isdisjoint(variables):
        tmpdir.reset_tempfile()


def describe_status(status: int) -> str:
    """Describe how a process ended, from its wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hint = " (often the kernel's answer to too little memory)" if number == 9 else ""
        return f"its process was killed by signal {number}{hint}"
    return f"its process exited with code {os.WEXITSTATUS(status)}"


def run_python_task(sock: socket.socket, progress: int) -> None:
    """Run one call in a process of its own.

    The reply names the modules that it had to import, so that the next fork has them.
    """
    before, held = len(sys.modules), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slot = Slot(sock, {}, progress, fork=False)
    while data := sock.recv(1 << 18):
        for message in _reader.feed(data):
            if not isinstance(message, Call):
                slot.handle(message)
                continue
            slot.mark_running(message)
            set_variables(message.options.pop("env", {}))
            reply = slot.run_call(message)
            slot.complete_reply(reply)
            reply.info.update(_imported_since(before))
            usage = resource.getrusage(resource.RUSAGE_SELF)
            reply.info["cpu_s"] = usage.ru_utime + usage.ru_stime
            # counts if the task ends before its first sample
            reply.info["grown_mb"] = 1 + (usage.ru_maxrss - held) // 1024
            captured_output.flush_streams()
            # outputs are taken from the sandbox now, and must not be written any more
            descendants.kill_all()
            sock.sendall(b"".join(encode([reply])))
            # to tidy up here is to write to, and so to copy, pages shared with the fork server
            os._exit(0)


def _imported_since(before: int) -> dict[str, list[str]]:
    """Return the imports of this process after the first ``before`` modules.

    These are top-level modules of packages, and the files of the user's own modules. Other names
    are not read: each read copies the page of the name, which this process shares with its fork
    server.
    """
    new = islice(reversed(sys.modules), max(0, len(sys.modules) - before))
    found = [
        name
        for name in new
        if "." not in name
        and not name.startswith("_")
        and getattr(module := sys.modules[name], "__spec__", None)
        and not user_modules.is_own_module(module)
    ]
    told = {"modules": found[::-1][:MAX_REPORTED_MODULES], "sources": fresh_imports.list_loaded_sources()}
    return {kind: names for kind, names in told.items() if names}
