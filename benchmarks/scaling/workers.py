"""Simulated workers: the state machine of a real one, whose instructions are executed at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vineworker.slot_protocol import Reply
from vineworker.state import events as e
from vineworker.state import instructions as i
from vineworker.state import state_machine

from benchmarks.scaling.shapes import VALUE
from vinecore.manager.compatibility import package_versions, python_version
from vinecore.protocol import VERSION
from vinecore.protocol import messages as m

DISK_MB = 100_000
NOBODY = 9  # the port of the discard service: what a simulated worker fetches is there without asking

VERSIONS = package_versions()


class Worker:
    """A worker whose calls take no time.

    Parameters
    ----------
    number
        For its name.
    cores
        As many as it says it has.
    result_bytes
        The size that it gives to results; there is nothing behind it.
    call_s
        How long it says that a call has taken.
    """

    def __init__(self, number: int, cores: int, result_bytes: int, call_s: float) -> None:
        self._state_machine = state_machine.WorkerStateMachine()
        self._result_bytes, self._call_s = result_bytes, call_s
        self.done = self.fetched = 0
        self.hello = m.Hello(
            VERSION,
            f"simulated{number}",
            0,
            python_version(),
            cores,
            2000 * cores,
            DISK_MB,
            0,
            NOBODY,
            [],
            {},
        )

    def hear(self, messages: list[m.Message]) -> list[m.Message]:
        """Do what the manager says; give what there is to answer."""
        said: list[m.Message] = []
        happened: list[Any] = list(messages)
        while happened:
            replies: dict[int, list[Reply]] = {}
            doings = self._state_machine.handle(happened)
            happened = []
            for doing in doings:
                if type(doing) is i.SendMessage:
                    said.append(doing.message)
                elif type(doing) is i.SendCall:
                    replies.setdefault(doing.slot, []).append(self._reply(doing.run))
                elif type(doing) in _AT_ONCE:
                    happened.append(_AT_ONCE[type(doing)](doing))
                    self.fetched += type(doing) is i.StartFetch
            happened += [e.CallsReturned(slot, calls) for slot, calls in replies.items()]
            self.done += sum(map(len, replies.values()))
        return said

    def _reply(self, run: m.RunTask) -> Reply:
        """Build a slot's reply: a value that can be loaded if the manager requests it."""
        size, payload = (len(VALUE), VALUE) if run.return_result else (self._result_bytes, b"")
        return Reply(run.task, "done", size, self._call_s, {}, payload)


_AT_ONCE: dict[type, Callable[[Any], Any]] = {
    i.StartForkServer: lambda doing: e.ForkServerReady(doing.fork_server, 0.0, VERSIONS),
    i.StartFetch: lambda doing: e.ObjectArrived(doing.fetch.name, max(doing.fetch.size, 0), True, doing.fetch.digest),
    i.StartUnpack: lambda doing: e.ObjectArrived(doing.unpack.name, 0, True),
    i.KillSlot: lambda doing: e.SlotExited(doing.slot, -1, {}),
}  # fmt: skip
