"""What a peer that knows the secret may say if it is broken, or lies: `python -m tests.fuzz.protocol_messages --inputs 1000000`.

Bytes go to the frame parser of both ends; what it lets through goes to the scheduler of a manager with work to do, and to the state machine of a worker. Whatever was
said, neither raises anything but the parser's own refusal, and when the liars are gone the rest of the work is done.
"""

from __future__ import annotations

import json
import random
import sys
import time
import typing
from typing import Any

import click
import msgspec
from vineworker.slot_protocol import FROM_SLOT
from vineworker.state import events as we
from vineworker.state import state_machine as w

from tests.harness.scheduler import SchedulerHarness, call, chain, single
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.protocol.frames import FrameReader, ProtocolError, encode
from vinecore.scheduler import events as e
from vinecore.scheduler.instructions import Send

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 10**6, 1 << 41, 1 << 61, -(1 << 61), 1 << 70, 0.0, -1.5, 1e300, float("nan"), float("inf"), "", "x",
    "../../etc/passwd", "\0", "\udc80", "é", [], [[]], ["x", 1], {}, {"": None}, {"digest": 1}, {"outputs": {"x": "y"}}, {"measured": {"cores": "many"}},
)  # fmt: skip
NAMES = (
    "setup",
    "data",
    "r1",
    "r2",
    "r3",
    "r4",
    "r5",
    "r20",
    "none",
    "lib",
    "other",
    "manager",
    "host1:7",
    "",
)
LIMIT = 1 << 20


class Liar:
    """Makes up what a peer says.

    Parameters
    ----------
    seed
        The same one makes up the same.
    kinds
        What the peer has any business to say.
    """

    def __init__(self, seed: int, kinds: typing.Iterable[Any]) -> None:
        self.chance = random.Random(seed)
        self.kinds = [(kind, typing.get_type_hints(kind)) for kind in kinds]
        self.tickets = [number + (again << 40) for number in range(30) for again in range(2)]

    def message(self) -> Any:
        """A message whose fields may be what they should be, or not."""
        kind, hints = self.chance.choice(self.kinds)
        return kind(*(self._field(name, hints[name]) for name in kind._fields))

    def _field(self, name: str, hint: Any) -> Any:
        chance = self.chance
        if chance.random() < 0.02 and hint is not bytes:
            return chance.choice(ODD)
        if name in ("info", "options"):
            return self._record()
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is tuple:
            return [self._field("", argument) for argument in arguments]
        if origin is dict:
            return {chance.choice(NAMES): self._field("", arguments[1]) for _ in range(chance.randrange(3))}
        if origin is not None:
            return [self._field(name, arguments[0]) for _ in range(chance.randrange(4))]
        if hint is bool:
            return chance.random() < 0.5
        if hint is bytes:
            return bytes(chance.randrange(4))
        if hint is str:
            kinds = (
                "exception",
                "crash",
                "exhausted",
                "disk",
                "library",
                "input",
                "time",
                "cancelled",
                "done",
                "unfed",
                "fork",
                "direct",
            )
            return (
                chance.choice(kinds)
                if name in ("kind", "exec_mode") and chance.random() < 0.9
                else chance.choice(NAMES)
            )
        if name in ("task", "tasks"):
            return chance.choice(self.tickets)
        if hint is float:
            return chance.choice((0.0, 0.001, 0.1, 60.0, -1.0, 1e18))
        if hint is int:
            return chance.choice((-1, 0, 1, 10, INLINE_LIMIT + 1, 10**9, 1 << 60))
        return chance.choice(ODD)

    def _record(self) -> dict[str, Any]:
        chance, found = self.chance, {}
        for _ in range(chance.choice((0, 0, 0, 1, 2, 4))):
            found.update(chance.choice(RECORDS))
        return dict(found)

    def frame(self) -> bytes:
        """Bytes of some messages, perhaps damaged."""
        chance = self.chance
        try:
            parts = encode([self.message() for _ in range(chance.randrange(1, 4))])
        except UnicodeEncodeError:
            return b""
        data = bytearray(b"".join(parts))
        if chance.random() < 0.5:
            for _ in range(chance.choice((1, 1, 2, 8))):
                place = chance.randrange(len(data))
                way = chance.randrange(4)
                if way == 0:
                    data[place] = chance.randrange(256)
                elif way == 1:
                    del data[place : place + chance.choice((1, 1, 4, 100))]
                elif way == 2:
                    data[place:place] = chance.choice(
                        (b"[", b"]", b"{", b'"', b"0", b"-", b"e9", b"null", b"\xff", b"\\u0000", b"[" * 3000)
                    )
                else:
                    data[place:place] = data[: chance.randrange(len(data))]
                if not data:
                    break
        return bytes(data)


RECORDS: tuple[dict[str, Any], ...] = (
    {"digest": "d"}, {"digests": {"r1": "d"}}, {"outputs": {"r1": 5, "r2": INLINE_LIMIT + 1}}, {"exit_code": 3}, {"measured": {"cores": 1.5, "memory": 3, "disk": None}},
    {"measured": None}, {"measured": {"cores": -5, "memory": 1 << 60, "disk": 1}}, {"lost": ["r1"]}, {"size": 1 << 60, "room": 0}, {"room": -5}, {"size": -1},
    {"reason": "why"}, {"log": "said"}, {"resource": "memory"}, {"resource": "luck"}, {"note": "!"}, {"outputs": 1}, {"measured": [1]}, {"reason": {"a": 1}},
    {"wall_s": 1}, {"text": "x"}, {"kind": 5}, {"evidence": 7}, {"worker": "x"}, {"attempt": []},
    {"command": "true"}, {"command": "true", "mounts": [["data", "d", False]], "outputs": [["out", "r1", "always"]]}, {"mounts": 7}, {"mounts": [["data"]]},
    {"environment": "env"}, {"environment": 5}, {"once": True}, {"raw": True}, {"cores": 2}, {"env": {"A": "b"}}, {"env": []}, {"limits": None}, {"preload": ["numpy"]},
)  # fmt: skip


def parse(reader: FrameReader, data: bytes) -> list[Any] | None:
    """What a parser makes of bytes; None if it refuses them."""
    try:
        return list(reader.feed(data))
    except ProtocolError:
        return None


class Manager:
    """A scheduler with work to do, two workers that lie, and one that does not."""

    def __init__(self, seed: int) -> None:
        self.liar = Liar(seed, [kind for kind in m.FROM_WORKER if kind is not m.Hello])
        self.loads = self.liar.chance.choice((json.loads, msgspec.json.decode))
        self.harness = harness = SchedulerHarness()
        harness.install_library(slots=2)
        harness.declare_file("data", size=INLINE_LIMIT + 1, at_manager=True)
        harness.send_events(e.CategorySet("learns", "max", None, None, None))
        self.liars = [harness.connect_worker(2, features=["keeping"]) for _ in range(2)]
        harness.compute_graph(
            *chain(4), call(6, "r1", "r2", "data"), call(7, "r6", wanted_at_manager=("r7",)), number=1
        )
        harness.submit_tasks(single(20, "data"), single(21, "r20"), single(22, category="learns"), call(23))

    def listen(self, count: int) -> int:
        """Hear so many lies; give the number of those that came through the parser."""
        heard = 0
        readers = {number: FrameReader(m.FROM_WORKER, self.loads) for number in self.liars}
        for _ in range(count):
            number = self.liar.chance.choice(self.liars)
            said = parse(readers[number], self.liar.frame())
            if said is None:
                readers[number] = FrameReader(m.FROM_WORKER, self.loads)
                continue
            said = [message for message in said if type(message) is not m.Hello]
            heard += len(said)
            self.harness.worker_sends(number, *said)
            if self.liar.chance.random() < 0.02:
                self.harness.advance_time()
            if self.liar.chance.random() < 0.01:
                self.harness.disconnect_worker(number)
                self.liars[self.liars.index(number)] = new = self.harness.connect_worker(
                    2, features=["keeping"]
                )
                readers[new] = FrameReader(m.FROM_WORKER, self.loads)
        return heard

    def finish(self) -> None:
        """The liars leave; what is not over yet is done by one who does not lie, or it is said what that waits for."""
        harness = self.harness
        for number in self.liars:
            harness.disconnect_worker(number)
        honest = Honest(harness)
        harness.send_events(e.GraphClosed(1))
        for _ in range(100):
            harness.advance_time()
            honest.work()
        assert not harness.state.tasks or harness.scheduler.stalled_reason, (
            f"never over: {harness.state.tasks}"
        )
        harness.send_events(
            e.TasksCancelled(list(harness.state.tasks))
        )  # such as one whose input, they said, is larger than any disk
        assert not harness.state.tasks


class Honest:
    """A worker that does at once what it is told."""

    def __init__(self, harness: SchedulerHarness) -> None:
        self.harness, self.done = harness, len(harness.log)
        self.number = harness.connect_worker(4)

    def work(self) -> None:
        """Obey all that has come since."""
        while self.done < len(self.harness.log):
            instruction = self.harness.log[self.done]
            self.done += 1
            if type(instruction) is not Send or instruction.worker != self.number:
                continue
            said = instruction.message
            if isinstance(said, m.Library):
                self.harness.worker_sends(self.number, m.LibraryReady(said.name, 0.1, {}))
            elif isinstance(said, m.RunTask):
                sizes = {name: 5 for _remote, name, _when in said.options.get("outputs", ())}
                self.harness.worker_sends(
                    self.number,
                    m.TaskDone(said.task, 5, 0.01, {"outputs": sizes}, b"x" if said.return_result else b""),
                )
            elif isinstance(said, (m.Fetch, m.Unpack)):
                self.harness.worker_sends(self.number, m.Cached(said.name, getattr(said, "size", 0), ""))
            elif isinstance(said, m.Upload):
                self.harness.send_events(e.ObjectStored(said.name, 5))
            elif isinstance(said, m.StealRequest):
                self.harness.worker_sends(self.number, m.StealResponse(said.library, []))


class Worker:
    """The state machine of a worker whose manager and slots lie."""

    def __init__(self, seed: int) -> None:
        self.liar = Liar(seed, [kind for kind in m.FROM_MANAGER if kind is not m.Welcome])
        self.slots = Liar(seed + 1, FROM_SLOT)
        self.state = w.WorkerStateMachine()
        self.state.handle(
            [
                m.PutObject("setup", b"s"),
                m.Library("lib", "setup", "", 2, "direct", {}),
                we.ForkServerReady("lib", 0.1, {}),
            ]
        )

    def listen(self, count: int) -> int:
        """Hear so many lies; give the number of those that came through the parser."""
        chance, heard = self.liar.chance, 0
        reader, answers = FrameReader(m.FROM_MANAGER), FrameReader(FROM_SLOT)
        for _ in range(count):
            if chance.random() < 0.3 and self.state.slots:
                said = parse(answers, self.slots.frame())
                if said is None:
                    answers = FrameReader(FROM_SLOT)
                    continue
                slot = chance.choice(list(self.state.slots))
                self.state.handle([we.CallsReturned(slot, said)])
            else:
                said = parse(reader, self.liar.frame())
                if said is None:
                    reader = FrameReader(m.FROM_MANAGER)
                    continue
                self.state.handle([message for message in said if type(message) is not m.Welcome])
            heard += len(said)
        return heard


def tell(seed: int, count: int) -> int:
    """Lie to a manager and to a worker, so many times to each; give the number of lies that came through their parsers."""
    manager = Manager(seed)
    heard = manager.listen(count)
    manager.finish()
    return heard + Worker(seed).listen(count)


@click.command()
@click.option(
    "--inputs", type=int, default=1_000_000, show_default=True, help="Frames, for both ends together."
)
@click.option("--seed", type=int, default=1, show_default=True, help="The first seed.")
def main(inputs: int, seed: int) -> None:
    """Lie a million times."""
    started, heard, frames = time.monotonic(), 0, 0
    while frames < inputs:
        try:
            heard += tell(seed, 500)
        except BaseException:
            print(f"seed {seed}")
            raise
        frames += 1000
        seed += 1
    print(f"{frames} frames, {heard} messages through the parsers, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
