"""What is sealed cannot be altered, added, left out, swapped or repeated by who does not have the key."""

from __future__ import annotations

import socket
import time

import pytest

from tests.harness.processes import PATIENCE_S
from vinecore.protocol import authentication, handshake
from vinecore.protocol import messages as m
from vinecore.protocol.frames import FrameReader, ProtocolError, encode

KEY = handshake.session_key(b"secret", "worker", "server's nonce", "client's nonce")


def frames(*said, key=KEY, side="client"):
    """As many frames of one message each."""
    authenticator = authentication.MessageAuthenticator(key, side)
    made = []
    for message in said:
        parts = encode([message])
        made.append(b"".join([*parts, authenticator.sign(parts)]))
    return made


def reader(key=KEY):
    return FrameReader(m.FROM_WORKER, authenticator=authentication.sender_and_receiver(key, "server")[1])


SAID = [m.Cached("a", 1), m.TaskDone(7, 4, 0.5, {}, b"data"), m.Ping()]
FIRST, SECOND, THIRD = frames(*SAID)


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_what_is_sealed_comes_through(piece):
    data, heard, one = FIRST + SECOND + THIRD, [], reader()
    for start in range(0, len(data), piece):
        heard += one.feed(data[start : start + piece])
    assert heard == SAID


def test_whatever_is_altered_is_not_heard():
    for place in range(len(SECOND)):
        for bit in (1, 128):
            altered = bytearray(SECOND)
            altered[place] ^= bit
            one = reader()
            assert one.feed(FIRST) == SAID[:1]
            heard = []
            try:
                heard = one.feed(bytes(altered) + THIRD)
            except ProtocolError:
                pass
            assert not heard, (place, bit)


@pytest.mark.parametrize(
    "data",
    [
        FIRST + FIRST,
        SECOND,
        FIRST + THIRD,
        SECOND + FIRST,
        frames(SAID[0], side="server")[0],
        frames(SAID[0], key=b"another")[0],
        b"".join(encode(SAID[:1])) + bytes(authentication.SIZE),
    ],
    ids=["repeated", "the second first", "left out", "swapped", "thrown back", "of another key", "made up"],
)
def test_without_key_no_message_can_change(data):
    """Who has no key can neither repeat nor leave out nor make up anything."""
    with pytest.raises(ProtocolError, match="wrong message authentication code"):
        reader().feed(data)


def test_lines_are_sealed_as_well():
    near, far = socket.socketpair()
    with near, far:
        here, there = (
            authentication.AuthenticatedLines(near, KEY, "client"),
            authentication.AuthenticatedLines(far, KEY, "server"),
        )
        for number in range(3):
            here.send({"get": number})
            there.send({"size": number})
            assert there.receive(time.monotonic() + PATIENCE_S) == {"get": number}
            assert here.receive(time.monotonic() + PATIENCE_S) == {"size": number}
        here.send({"get": "a"})
        line = far.recv(1000)
        for altered in (
            line.replace(b'"a"', b'"b"'),
            b"{}\n",
            b"\n",
            line[:-2] + b"\n",
            line[:-3] + b"\xff\n",
        ):
            near.sendall(altered)
            with pytest.raises(handshake.HandshakeRejected, match="wrong message authentication code"):
                authentication.AuthenticatedLines(far, KEY, "server").receive(time.monotonic() + PATIENCE_S)


def test_the_key_is_of_this_handshake_only():
    parts = (b"secret", "worker", "1", "2")
    others = [
        (b"other", *parts[1:]),
        (b"secret", "bulk", "1", "2"),
        (b"secret", "worker", "3", "2"),
        (b"secret", "worker", "1", "3"),
    ]
    keys = {handshake.session_key(*parts)} | {handshake.session_key(*other) for other in others}
    assert len(keys) == 5
