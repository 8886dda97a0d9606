"""Frames: many messages at a time, readable by a person, payloads untouched.

::

    4 bytes   length of the JSON text, big endian
    JSON      [[length of each payload, ...], message, message, ...]
    bytes     the payloads, one after another
    16 bytes  the MAC of all that, between a worker and its manager (see `authentication`)

A message is ``[kind, field, ...]``. This module never touches a socket: `encode` gives bytes, `FrameReader` takes them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Callable, Union

from vinecore.protocol import validation
from vinecore.protocol.messages import Message

if TYPE_CHECKING:  # what runs in slots has no use for it
    from vinecore.protocol.authentication import MessageAuthenticator

LENGTH = struct.Struct(">I")
MAX_TEXT = 64 * 1024 * 1024
MAX_PAYLOAD = 1024 * 1024 * 1024

Dumps = Callable[[Any], bytes]
Loads = Callable[[bytes], Any]
Bytes = Union[bytes, bytearray]


class ProtocolError(Exception):
    """The other end said something that is not in the protocol."""


_encoder = json.JSONEncoder(separators=(",", ":"), check_circular=False)


_strict_encoder = json.JSONEncoder(
    separators=(",", ":"), check_circular=False, ensure_ascii=False, allow_nan=False
)


def json_dumps(value: Any) -> bytes:
    """Encode with the standard library; it takes what only Python's own decoder understands, too."""
    return _encoder.encode(value).encode()


def strict_json_dumps(value: Any) -> bytes:
    """Encode with the standard library what any decoder understands; in texts, half of a surrogate pair becomes a question mark.

    Raises
    ------
    ValueError
        There is an infinite number, or one that is none.
    """
    return _strict_encoder.encode(value).encode(errors="replace")


def encode(messages: Iterable[Message], dumps: Dumps = json_dumps) -> list[bytes]:
    """Turn messages into one frame.

    Parameters
    ----------
    messages
        What to send, in order.
    dumps
        A JSON encoder; the manager passes a faster one.

    Returns
    -------
    list of bytes
        The parts of the frame, to be written one after another.

    Raises
    ------
    ValueError
        Together they are larger than what the other end takes. A JSON encoder may raise other errors.
    """
    lengths: list[int] = []
    payloads: list[bytes] = []
    body: list[Any] = [lengths]
    for message in messages:
        fields: tuple[Any, ...] = message
        if message._fields[-1:] == ("payload",):
            payload = fields[-1]
            lengths.append(len(payload))
            payloads.append(payload)
            body.append((type(message).__name__, *fields[:-1]))
        else:
            body.append((type(message).__name__, *fields))
    text = dumps(body)
    if len(text) > MAX_TEXT or sum(lengths) > MAX_PAYLOAD:
        msg = f"it takes {len(text) + sum(lengths):,} bytes, and a message may have {MAX_TEXT:,}, and {MAX_PAYLOAD:,} of arguments or results"
        raise ValueError(msg)
    return [LENGTH.pack(len(text)), text, *payloads]


def _safe_repr(value: Any) -> str:
    try:
        return str(value)[:200]
    except RecursionError:
        return "something that is nested too deep to be shown"


class FrameReader:
    """Collects bytes and gives back whole messages.

    Parameters
    ----------
    kinds
        The message classes the other end may send; anything else is a `ProtocolError`.
    loads
        A JSON decoder.
    trusted
        Whether the other end is known to say in each field what belongs there.
    authenticator
        Of the frames of the other end; None where they carry no MAC.
    """

    def __init__(
        self,
        kinds: Iterable[Any],
        loads: Loads = json.loads,
        *,
        trusted: bool = False,
        authenticator: Union[MessageAuthenticator, None] = None,
    ) -> None:
        kinds = tuple(kinds)
        self._forms = {
            kind.__name__: validation.any_json if trusted else validation.validator_for(kind)
            for kind in kinds
        }
        self._kinds = {kind.__name__: kind for kind in kinds}
        self._with_payload = {
            kind.__name__ for kind in self._kinds.values() if kind._fields[-1:] == ("payload",)
        }
        self._loads = loads
        self._buffer = bytearray()
        self._authenticator, self._text = authenticator, b""
        self._body: list[Any] | None = None
        self._need = LENGTH.size

    def feed(self, data: bytes) -> list[Message]:
        """Take what arrived; give the messages that are complete, in order."""
        messages: list[Message] = []
        source: Bytes = data  # mostly it is whole frames
        if self._buffer:
            self._buffer += data
            source = self._buffer
        position, end = 0, len(source)
        while end - position >= self._need:
            if self._body is None:
                (size,) = LENGTH.unpack_from(source, position)
                if size > MAX_TEXT:
                    msg = f"a frame of {size} bytes; at most {MAX_TEXT} are allowed"
                    raise ProtocolError(msg)
                if end - position < LENGTH.size + size:
                    self._need = LENGTH.size + size
                    break
                text = bytes(source[position : position + LENGTH.size + size])
                self._body = self._parse_text(text[LENGTH.size :])
                position += len(text)
                self._need = sum(self._body[0])
                if self._authenticator is not None:
                    self._need, self._text = self._need + self._authenticator.size, text
            else:
                if self._authenticator is not None:
                    self._check_authentication(self._authenticator, source, position)
                position = self._take_frame(source, position, messages)
        if source is self._buffer:
            del self._buffer[:position]
        elif position < end:
            self._buffer += data[position:]
        return messages

    def _parse_text(self, text: bytes) -> list[Any]:
        try:
            body = self._loads(text)
        except (ValueError, RecursionError) as error:
            msg = f"a frame that is not JSON: {error}"
            raise ProtocolError(msg) from None
        if not (isinstance(body, list) and body and isinstance(body[0], list)):
            msg = "a frame that is not a list of messages"
            raise ProtocolError(msg)
        if not all(type(size) is int and size >= 0 for size in body[0]) or sum(body[0]) > MAX_PAYLOAD:
            msg = "a frame with impossible payload lengths"
            raise ProtocolError(msg)
        return body

    def _take_frame(self, source: Bytes, position: int, messages: list[Message]) -> int:
        assert self._body is not None
        lengths = iter(self._body[0])
        try:
            for item in self._body[1:]:
                kind = item[0]
                if kind in self._with_payload:
                    size = next(lengths)
                    payload = bytes(source[position : position + size])
                    position += size
                    message = self._kinds[kind](*item[1:], payload)
                else:
                    message = self._kinds[kind](*item[1:])
                if not self._forms[kind](message):
                    msg = f"a message with a field that cannot be: {_safe_repr(message)}"
                    raise ProtocolError(msg)
                messages.append(message)
        except (KeyError, TypeError, IndexError, StopIteration, RecursionError) as error:
            msg = (
                f"a message that is not in the protocol: {_safe_repr(item)} ({type(error).__name__}: {error})"
            )
            raise ProtocolError(msg) from None
        if next(lengths, None) is not None:
            msg = "a frame with payloads that belong to no message"
            raise ProtocolError(msg)
        self._body = None
        self._need = LENGTH.size
        return position if self._authenticator is None else position + self._authenticator.size

    def _check_authentication(
        self, authenticator: MessageAuthenticator, source: Bytes, position: int
    ) -> None:
        """Check the MAC before anything that was said counts."""
        end = position + self._need
        start = end - authenticator.size
        payloads = bytes(source[position:start])
        if not authenticator.verify(bytes(source[start:end]), (self._text, payloads)):
            msg = (
                "a frame with a wrong message authentication code: it is not what was sent, or not what"
                " was to come now. Something between both ends alters what they say"
            )
            raise ProtocolError(msg)
