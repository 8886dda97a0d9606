"""What may be in the fields of messages."""

from __future__ import annotations

import pytest
from vineworker.slot_protocol import FROM_SLOT, TO_SLOT, Reply

from tests.fuzz import protocol_messages
from vinecore.protocol import messages as m
from vinecore.protocol import validation
from vinecore.protocol.frames import FrameReader, ProtocolError, encode


@pytest.mark.parametrize("kind", [*m.FROM_MANAGER, *m.FROM_WORKER, *TO_SLOT, *FROM_SLOT])
def test_every_kind_of_message_has_a_form(kind):
    assert callable(validation.validator_for(kind))


@pytest.mark.parametrize(
    "message",
    [
        m.TaskDone(1, 5, 0, {}, b""),
        m.TaskDone(
            1,
            5,
            0.5,
            {"measured": {"cores": 1.5, "memory": None}, "outputs": {"a": 1}, "anything": [None]},
            b"x",
        ),
        m.TaskFailed(1, "crash", {"reason": "signal 9", "log": "é"}, b""),
        m.Cached("a", -1),
        m.PersistentObjects(["a"], [-1], ["d"]),
        m.RunTask(
            1,
            "lib",
            "f",
            ["a"],
            (),
            "r",
            False,
            {"mounts": [["a", "b", False]], "allocation": (1.0, 2, 3, 0.0)},
            b"",
        ),
        m.Fetch("a", 1, "host:1", False, ("tag", "date"), "d"),
        m.Fetch("a", 1, "host:1", False, (), "d", 3, "00", "00", 14400),
        Reply(1, "done", 3, 0.1, {"digest": "d"}, b""),
    ],
)
def test_what_is_said_every_day_fits(message):
    assert validation.validator_for(type(message))(message)


@pytest.mark.parametrize(
    "message",
    [
        m.TaskDone("1", 5, 0.1, {}, b""),
        m.TaskDone(True, 5, 0.1, {}, b""),
        m.TaskDone(1, 1 << 70, 0.1, {}, b""),
        m.TaskDone(1, 5, float("nan"), {}, b""),
        m.TaskDone(1, 5, None, {}, b""),
        m.TaskDone(1, 5, 0.1, [], b""),
        m.TaskDone(1, 5, 0.1, {"outputs": {"a": "b"}}, b""),
        m.TaskDone(1, 5, 0.1, {"measured": {"cores": "many"}}, b""),
        m.TaskDone(1, 5, 0.1, {"digest": 5}, b""),
        m.Cached("\udc80", 1),
        m.PersistentObjects(["a", "b"], [1], ["d", "e"]),
        m.ObjectsLost("abc"),
        m.ObjectsLost([1]),
        m.LibraryReady("lib", 0.1, {"numpy": 2}),
        m.Library("lib", "setup", "", 1 << 40, "direct", {}),
        m.RunTask(1, "lib", "f", [], [], "r", False, {"mounts": [["a"]]}, b""),
    ],
)  # fmt: skip
def test_what_cannot_be_does_not_fit(message):
    assert not validation.validator_for(type(message))(message)


def test_invalid_field_is_refused_and_shown():
    """A message with a field that cannot be is refused and shown."""
    with pytest.raises(ProtocolError, match=r"cannot be: Cached\(name='a', size='large'"):
        FrameReader(m.FROM_WORKER).feed(b"".join(encode([m.Cached("a", "large")])))


@pytest.mark.parametrize("seed", range(20))
def test_any_message_leaves_both_ends_running(seed):
    """Whatever a peer says both ends go on."""
    assert protocol_messages.tell(seed, 200) > 10
