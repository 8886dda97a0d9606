"""Run the program of a library in another language, and pass calls from its slots to it.

The fork server starts the program with two pipes and forks the slots, as for a library of
functions. A slot has a socket to the fork server, which passes on one call at a time:
`vineworker.library.program_slot`. docs/library-programs.md describes the pipes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterable
from typing import Any

from vineworker.library.slot import describe_status
from vineworker.machine import descendants
from vineworker.tasks.sandbox import read_log_tail

MAX_MESSAGE_BYTES = 1 << 16
MAX_LOG_CHARACTERS = 2000
EXIT_TIMEOUT_S = 1.0
EXIT_POLL_INTERVAL_S = 0.005
MAX_IDLE_ENDS = 5
"""A program is given up when it ends more often than this, one time after another, without a call."""


class ProgramFailed(Exception):
    """A program could not be started, or does not keep to the protocol.

    Parameters
    ----------
    reason
        What has happened.
    final
        Whether another try would end the same way.
    """

    def __init__(self, reason: str, final: bool = True) -> None:
        super().__init__(reason)
        self.final = final


class MessageReader:
    """Splits what a program has written into messages, each after a line with its length."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete.

        Raises
        ------
        ProgramFailed
            There is no length where one is expected.
        """
        self._data += data
        found = []
        while b"\n" in self._data[:20] or len(self._data) >= 20:
            line, _newline, rest = self._data.partition(b"\n")
            if not line.isdigit() or int(line) > MAX_MESSAGE_BYTES:
                text = line[:80].decode(errors="replace")
                msg = f"it has written {text!r} where the length of a message belongs"
                raise ProgramFailed(msg)
            if len(rest) < int(line):
                break
            found.append(rest[: int(line)])
            self._data = rest[int(line) :]
        return found


class LibraryProgram:
    """One process of the program, and the slots that use it.

    Parameters
    ----------
    about
        ``command`` (a shell command), ``prefix`` (words before the shell), ``name`` of the library,
        ``slots`` and ``cores`` of the process, and the path of its ``log``.
    number
        The number of the process in its library.
    """

    def __init__(self, about: dict[str, Any], number: int) -> None:
        self._about, self._number = about, number
        self._callers: dict[int, socket.socket] = {}
        # call -> slot, and the message with which the program got it
        self._running: dict[int, tuple[int, bytes]] = {}
        self._calls = self._idle_ends = 0
        self._misbehavior = ""
        self._process: Any = None
        self._in = self._out = -1
        self.start()

    @property
    def pid(self) -> int:
        """The process."""
        return int(self._process.pid)

    @property
    def has_room(self) -> bool:
        """Whether one more slot may use the process."""
        return len(self._callers) < int(self._about["slots"])

    def start(self) -> None:
        """Start the process, and wait until it is ready.

        Raises
        ------
        ProgramFailed
            It has ended, or has sent something else.
        """
        self._unsent, self._reader, self._misbehavior = b"", MessageReader(), ""
        in_read, self._in = os.pipe()
        self._out, out_write = os.pipe()
        os.set_blocking(self._in, False)
        options = {
            "--in-pipe-fd": in_read,
            "--out-pipe-fd": out_write,
            "--task-id": self._number,
            "--library-cores": self._about["cores"],
            "--function-slots": self._about["slots"],
            "--worker-pid": os.getpid(),
        }
        words = [str(word) for option in options.items() for word in option]
        self._process = subprocess.Popen(
            [*self._about["prefix"], "/bin/sh", "-c", self._about["command"] + ' "$@"', "sh", *words],
            stdin=subprocess.DEVNULL,
            pass_fds=(in_read, out_write),
        )
        os.close(in_read)
        os.close(out_write)
        try:
            self._wait_until_ready()
        except ProgramFailed:
            self._kill()
            raise

    def _wait_until_ready(self) -> None:
        while True:
            data = os.read(self._out, 4096)
            if not data:
                self._end()
                _pid, status = os.waitpid(self.pid, 0)
                msg = (
                    f"its program has ended before it was ready: {describe_status(status)}{self._log_tail()}"
                )
                raise ProgramFailed(msg, final=False)
            for message in self._reader.feed(data):
                try:
                    name = json.loads(message)["name"]
                except (ValueError, KeyError, TypeError):
                    msg = f"its program has written {message[:80]!r} instead of a JSON object with its name"
                    raise ProgramFailed(msg) from None
                if name != self._about["name"]:
                    msg = f"its program says that it is the library {name!r}, not {self._about['name']!r}"
                    raise ProgramFailed(msg)
                return

    def attach(self, slot: int) -> socket.socket:
        """Return the end of a new slot's socket."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._callers[slot] = own
        return other

    def watched(self) -> tuple[list[Any], list[int]]:
        """Return what is to be read from and written to as soon as that is possible."""
        out = [] if self._out < 0 else [self._out]
        return [*out, *self._callers.values()], [self._in] if self._unsent else []

    def handle(self, ready: Iterable[Any]) -> None:
        """Pass on calls and their ends.

        Raises
        ------
        ProgramFailed
            The process had to be started again, and that was not possible.
        """
        for source in ready:
            if source == self._out:
                self._receive()
            elif source == self._in:
                self._send(b"")
        for slot, caller in list(self._callers.items()):
            if caller in ready:
                self._on_call(slot, caller)

    def _on_call(self, slot: int, caller: socket.socket) -> None:
        data = caller.recv(MAX_MESSAGE_BYTES)
        if data:
            self._calls += 1
            text = f"{self._calls} {data.decode()}".encode()
            message = b"%d\n%s" % (len(text), text)
            self._running[self._calls] = slot, message
            self._send(message)
            return
        # the slot is gone
        caller.close()
        del self._callers[slot]
        abandoned = [call for call, (other, _message) in self._running.items() if other == slot]
        if abandoned:
            # its call was cancelled, and would take the program's time: it starts again with the
            # other calls
            del self._running[abandoned[0]]
            self._kill()
            os.waitpid(self.pid, 0)
            self._restart()
            for _slot, message in self._running.values():
                self._send(message)

    def _send(self, data: bytes) -> None:
        self._unsent += data
        try:
            self._unsent = self._unsent[os.write(self._in, self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            # the process has ended; that is told otherwise
            self._unsent = b""

    def _receive(self) -> None:
        data = os.read(self._out, MAX_MESSAGE_BYTES)
        try:
            if not data:
                self._end()
                return
            for message in self._reader.feed(data):
                self._on_reply(message)
        except ProgramFailed as error:
            self._misbehavior = f" after {error}"
            self._end()

    def _on_reply(self, message: bytes) -> None:
        try:
            call, status = map(int, message.split())
        except ValueError:
            msg = f"it has written {message[:80]!r} instead of the number and the status of a call"
            raise ProgramFailed(msg) from None
        slot, _message = self._running.pop(call, (-1, b""))
        self._answer(slot, {"status": status})

    def _answer(self, slot: int, answer: dict[str, Any]) -> None:
        caller = self._callers.get(slot)
        if caller is not None:
            try:
                caller.send(json.dumps(answer).encode())
            except OSError:
                # the slot is gone; its end of the socket tells that, too
                pass

    def on_exited(self, status: int) -> None:
        """Report the end of the process to the slots with calls, and start it again.

        Raises
        ------
        ProgramFailed
            That was not possible, or has happened too often.
        """
        reason = f"the program of its library has ended: {describe_status(status)}{self._misbehavior}{self._log_tail()}"
        running, self._running = self._running, {}
        self._idle_ends = 0 if running else self._idle_ends + 1
        self._close_pipes()
        if self._idle_ends > MAX_IDLE_ENDS:
            raise ProgramFailed(reason, final=False)
        for slot, _message in running.values():
            self._answer(slot, {"ended": reason})
        self.start()

    def _restart(self) -> None:
        self._close_pipes()
        self.start()

    def _end(self) -> None:
        """Have the process keep the status with which it is ending, and kill one that stays."""
        deadline = time.monotonic() + EXIT_TIMEOUT_S
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline:
                break
            time.sleep(EXIT_POLL_INTERVAL_S)
        self._kill()

    def _kill(self) -> None:
        descendants.kill_processes(descendants.list_with_descendants([self.pid]))
        if self._out >= 0:
            os.close(self._out)
            self._out = -1

    def _close_pipes(self) -> None:
        os.close(self._in)
        if self._out >= 0:
            os.close(self._out)

    def _log_tail(self) -> str:
        tail = read_log_tail(self._about["log"], MAX_LOG_CHARACTERS).strip()
        return f"; it has said: {tail}" if tail else ""


class LibraryPrograms:
    """The processes of the program of a library, one for each unit of its slots.

    Parameters
    ----------
    about
        As for `LibraryProgram`.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        self._about = about
        self._programs = [LibraryProgram(about, 1)]

    def attach(self, slot: int) -> socket.socket:
        """Return the end of a new slot's socket; start another process if all are used."""
        program = next((program for program in self._programs if program.has_room), None)
        if program is None:
            program = LibraryProgram(self._about, len(self._programs) + 1)
            self._programs.append(program)
        return program.attach(slot)

    def watched(self) -> tuple[list[Any], list[int]]:
        """Return what is to be read from and written to as soon as that is possible."""
        pairs = [program.watched() for program in self._programs]
        return [source for pair in pairs for source in pair[0]], [
            target for pair in pairs for target in pair[1]
        ]

    def handle(self, ready: Iterable[Any]) -> None:
        """Pass on calls and their ends."""
        for program in self._programs:
            program.handle(ready)

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [program.pid for program in self._programs]

    def on_exited(self, pid: int, status: int) -> None:
        """Handle the exit of a process, if it is one of these."""
        for program in self._programs:
            if program.pid == pid:
                program.on_exited(status)
