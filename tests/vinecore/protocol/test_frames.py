"""Frames: whatever comes in whatever pieces, whole messages come out, or a `ProtocolError`."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinecore.protocol import frames, messages
from vinecore.protocol import messages as m
from vinecore.protocol.frames import FrameReader, ProtocolError, encode, json_dumps

CODECS = [
    (json_dumps, json.loads),
    (msgspec.json.Encoder().encode, msgspec.json.Decoder().decode),
    (json_dumps, msgspec.json.Decoder().decode),
    (msgspec.json.Encoder().encode, json.loads),
]
EXAMPLES = [
    m.Ping(),
    m.TaskDone(1, 5, 0.25, {"outputs": {"a": 1}}, b"value"),
    m.TaskDone(2, 0, 0.0, {}, b""),
    m.PutObject("näme \N{SNOWMAN}", bytes(range(256))),
    m.Cancel([1, 2**53 + 1]),
    m.RunTask(7 << 40, "lib", "f", ["s"], ["a", "b"], "r", True, {"env": {"A": None}}, b"\n{}[]"),
    m.TaskFailed(1, "exception", {"text": 'quotes " and \\ and \u2028'}, b"\x00"),
]


def frame(*said, dumps=json_dumps):
    return b"".join(encode(said, dumps))


def raw(text, payload=b""):
    return len(text).to_bytes(4, "big") + text + payload


def everything():
    return [kind for kind in vars(messages).values() if isinstance(kind, type) and hasattr(kind, "_fields")]


def test_every_message_is_sent_by_somebody():
    assert {*m.FROM_MANAGER, *m.FROM_WORKER} == set(everything())


def test_a_payload_is_always_the_last_field():
    for kind in everything():
        assert "payload" not in kind._fields[:-1], kind


@pytest.mark.parametrize(("dumps", "loads"), CODECS)
def test_messages_come_out_as_they_went_in(dumps, loads):
    reader = FrameReader(everything(), loads)
    assert reader.feed(frame(*EXAMPLES, dumps=dumps)) == EXAMPLES


def test_allocations_and_other_tuples_arrive_as_lists():
    run = m.RunTask(1, "", "", [], [], "", False, {"allocation": (1, 2)}, b"")
    (back,) = FrameReader([m.RunTask]).feed(frame(run))
    assert back.options == {"allocation": [1, 2]}


@given(st.lists(st.sampled_from(EXAMPLES), max_size=8), st.lists(st.integers(1, 400), max_size=40))
def test_messages_are_independent_of_chunks(said, cuts):
    """However the bytes arrive the messages are the same."""
    data = b"".join(frame(*said[i : i + 3]) for i in range(0, len(said), 3))
    reader, heard = FrameReader(everything()), []
    for cut in cuts:
        piece, data = data[:cut], data[cut:]
        heard += reader.feed(piece)
    assert heard + reader.feed(data) == said


def test_one_byte_at_a_time_is_enough():
    reader = FrameReader(everything())
    assert [x for byte in frame(*EXAMPLES) for x in reader.feed(bytes([byte]))] == EXAMPLES


def test_message_is_complete_with_last_byte():
    """A message is given as soon as its last byte is there."""
    reader = FrameReader([m.PutObject])
    data = frame(m.PutObject("a", b"xyz"))
    assert reader.feed(data[:-1]) == []
    assert reader.feed(data[-1:] + frame(m.PutObject("b", b""))[:3]) == [m.PutObject("a", b"xyz")]


def test_an_empty_frame_says_nothing():
    assert FrameReader([]).feed(frame()) == []


def test_payloads_are_copies_that_outlive_the_buffer():
    reader = FrameReader([m.PutObject])
    (put,) = reader.feed(frame(m.PutObject("a", b"x" * 1000)))
    reader.feed(frame(m.PutObject("b", b"y" * 1000)))
    assert put.payload == b"x" * 1000
    assert type(put.payload) is bytes


@pytest.mark.parametrize("loads", [json.loads, msgspec.json.Decoder().decode])
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10,
        raw(b"not json"),
        raw(b'[[], ["Ping"'),
        raw(b"\xff\xfe"),
        raw(b""),
        raw(b"{}"),
        raw(b"[]"),
        raw(b"null"),
        raw(b'["Ping"]'),
        raw(b"[" * 100_000),
        raw(b'[[-1], ["Put", "a"]]'),
        raw(b'[[1.5], ["Put", "a"]]'),
        raw(b'[[true], ["Put", "a"]]', b"x"),
        raw(b'[["1"], ["Put", "a"]]'),
        raw(b"[[99999999999999], []]"),
        raw(b'[[], ["Put", "a"]]'),
        raw(b'[[1], ["Ping"]]', b"x"),
        raw(b'[[1, 1], ["Put", "a"]]', b"xy"),
        raw(b'[[], ["Nonsense", 1]]'),
        raw(b'[[], ["__class__"]]'),
        raw(b'[[], ["Ping", 1, 2]]'),
        raw(b'[[], ["Cancel"]]'),
        raw(b"[[], []]"),
        raw(b"[[], 1]"),
        raw(b'[[], {"Ping": 1}]'),
        raw(b'[[], [["Ping"]]]'),
        raw(b'[[], [{}, "Ping"]]'),
    ],
)
def test_garbage_is_refused_as_such(loads, data):
    with pytest.raises(ProtocolError):
        FrameReader(everything(), loads).feed(data)


@given(st.binary(max_size=400))
def test_any_garbage_is_refused_or_waited_for(data):
    try:
        heard = FrameReader(everything()).feed(data)
    except ProtocolError:
        return
    assert all(type(x) in everything() for x in heard)


def test_wrong_direction_is_refused():
    """What the other end has no business to say is refused."""
    with pytest.raises(ProtocolError, match="not in the protocol"):
        FrameReader(m.FROM_WORKER).feed(frame(m.Shutdown("go", True)))


def test_oversized_frame_is_refused_early():
    """A frame that announces too much is refused before it comes."""
    with pytest.raises(ProtocolError, match="at most"):
        FrameReader(everything()).feed((frames.MAX_TEXT + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="impossible payload lengths"):
        FrameReader(everything()).feed(raw(json_dumps([[frames.MAX_PAYLOAD + 1], ["PutObject", "a"]])))


def test_the_refusal_shows_what_came():
    with pytest.raises(ProtocolError, match="Nonsense"):
        FrameReader(everything()).feed(raw(b'[[], ["Nonsense", 1]]'))


def test_deeply_nested_message_is_refused():
    """A message that is nested too deep to be shown is refused as any other."""
    depth = 900  # which can be parsed, and not be written down
    for text in (
        b'["Nobody",' + b"[" * depth + b"]" * depth + b"]",
        b'["Ping",' + b"[" * depth + b"]" * depth + b"]",
    ):
        for loads in (json.loads, msgspec.json.Decoder().decode):
            with pytest.raises(ProtocolError):
                FrameReader([m.Ping], loads).feed(raw(b"[[]," + text + b"]"))
