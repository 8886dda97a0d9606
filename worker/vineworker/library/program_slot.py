"""A slot of a library in another language: it exchanges files with the program of the library.

For each call there is a folder with the arguments in ``infile``, to which the program writes the
result, ``outfile``. docs/library-programs.md describes both.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import sys
import tempfile
from functools import partial
from typing import Any, Callable

from vinecore.protocol.serialization import exceptions, pickling
from vinecore.protocol.trees import remove_tree
from vineworker.library.slot import Slot
from vineworker.slot_protocol import Call, Reply
from vineworker.tasks.output_files import read_output_tail

OUTPUT_NAME = ".vine-output"
MAX_ERROR_CHARACTERS = 2000


class ProgramEnded(Exception):
    """The program has ended before it has replied."""


class ProgramFunctions(dict[str, Callable[..., Any]]):
    """The functions of a library program: whatever name is called.

    Parameters
    ----------
    sock
        The socket to the fork server.
    pickled
        Whether arguments and results are pickles instead of JSON.

    Attributes
    ----------
    sandbox
        The folder of the next call, if that has files of its own; else "".
    is_raw
        Whether the result of the next call is what the program has written, as bytes.
    end
        Why the last call has got no reply; "" if it has.
    """

    def __init__(self, sock: socket.socket, pickled: bool) -> None:
        super().__init__()
        self._socket, self._pickled = sock, pickled
        self.sandbox, self.is_raw, self.end = "", False, ""

    def get(self, name: str, _default: Any = None) -> Any:
        """Return the function with a name."""
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        folder = self.sandbox or tempfile.mkdtemp(prefix="call-")
        try:
            if len(folder.split()) > 1:
                msg = f"the folder of the call, {folder}, has a space in its name, which the program could not read"
                raise ValueError(msg)
            with open(os.path.join(folder, "infile"), "wb") as file:
                file.write(self._dump_arguments(name, args, kwargs))
            output = os.path.join(folder, OUTPUT_NAME)
            self._socket.send(f"{name} {folder} {output}".encode())
            data = self._socket.recv(1 << 16)
            answer = json.loads(data) if data else {"ended": "the program of its library has ended"}
            said = _read_output(output)
            sys.stdout.write(said)
            if "ended" in answer:
                self.end = answer["ended"]
                raise ProgramEnded(self.end)
            if answer["status"]:
                text = f": {said[-MAX_ERROR_CHARACTERS:].strip()}" if said.strip() else ""
                msg = f"function {name!r} has ended with status {answer['status']}{text}"
                raise RuntimeError(msg)
            return self._load_result(name, os.path.join(folder, "outfile"))
        finally:
            if not self.sandbox:
                remove_tree(folder)

    def _dump_arguments(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        if self._pickled:
            return pickling.cloudpickle_dumps({"fn_args": args, "fn_kwargs": kwargs})
        if len(args) == 1 and not kwargs and isinstance(args[0], (bytes, bytearray)):
            return bytes(args[0])
        try:
            return json.dumps({"args": args, "kwargs": kwargs}).encode()
        except (TypeError, ValueError) as error:
            text = (
                f"the arguments of {name!r} are sent to a program as JSON: use numbers, texts, lists and "
                "dicts, or bytes as the only argument"
            )
            exceptions.add_note(error, text)
            raise

    def _load_result(self, name: str, path: str) -> Any:
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            msg = f"function {name!r} has written no outfile, although it has ended with status 0"
            raise FileNotFoundError(msg) from None
        if self.is_raw:
            return data
        if self._pickled:
            found = pickle.loads(data)
            if not found["Success"]:
                raise RuntimeError(str(found["Reason"]))
            return found["Result"]
        try:
            return json.loads(data)
        except ValueError as error:
            text = (
                f"the outfile of {name!r} begins with {data[:80]!r}: it has to be JSON, or the call needs "
                "disable_output_serialization() to get bytes"
            )
            exceptions.add_note(error, text)
            raise


class ProgramSlot(Slot):
    """A slot whose functions are those of a program; see `Slot`.

    Parameters
    ----------
    sock, functions, progress, captured, folder
        As those of `Slot`.
    """

    def __init__(
        self, sock: socket.socket, functions: ProgramFunctions, progress: int, captured: Any, folder: str
    ) -> None:
        super().__init__(sock, functions, progress, False, captured, folder)
        self._program = functions

    def run_call(self, call: Call) -> Reply:
        """Run a call; the end of the program is a crash of the call."""
        self._program.sandbox, self._program.end = call.sandbox, ""
        self._program.is_raw = "raw" in call.options
        reply = super().run_call(call)
        if self._program.end:
            return Reply(call.task, "crash", 0, reply.wall_s, {"reason": self._program.end}, b"")
        return reply


def _read_output(path: str) -> str:
    """Return the end of what a call has written."""
    try:
        with open(path, "rb") as file:
            return read_output_tail(file.fileno(), file.seek(0, os.SEEK_END))
    except FileNotFoundError:
        return ""
