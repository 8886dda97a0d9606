"""A connection that speaks frames, driven by an asyncio loop: whatever is sent in one turn of the loop leaves as one frame."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Callable, Union, cast

from vinecore.protocol.frames import Dumps, FrameReader, Loads, ProtocolError, encode, json_dumps
from vinecore.protocol.messages import Message

if TYPE_CHECKING:
    from vinecore.protocol.authentication import MessageAuthenticator

PROTOCOL_ERROR = "protocol error"
"""How the reason begins for which a connection has ended on which something impossible was said."""


MAX_REASON_CHARACTERS = 500


class MessageChannel(asyncio.Protocol):
    """Sends and receives messages over one stream.

    Parameters
    ----------
    kinds
        Message classes that the other end may send.
    received
        Called with the messages that one read has completed.
    lost
        Called once, with the reason, when the connection has ended.
    dumps, loads
        JSON encoder and decoder.
    authenticators
        Of the frames that this end sends and receives; None where frames carry no MAC.
    unsent
        Called with a message that cannot be sent, and the reason, later in the loop. All others of the same turn leave.
    """

    def __init__(
        self,
        kinds: Iterable[type],
        received: Callable[[list[Message]], None],
        lost: Callable[[str], None],
        dumps: Dumps = json_dumps,
        loads: Loads = json.loads,
        authenticators: tuple[Union[MessageAuthenticator, None], Union[MessageAuthenticator, None]] = (
            None,
            None,
        ),
        unsent: Union[Callable[[Message, str], None], None] = None,
    ) -> None:
        self._authenticator, theirs = authenticators
        self._reader = FrameReader(kinds, loads, authenticator=theirs)
        self._received, self._lost, self._dumps, self._unsent = received, lost, dumps, unsent
        self._outgoing: list[Message] = []
        self._leaving = False  # what is outgoing leaves in this turn of the loop
        self._transport: Union[asyncio.Transport, None] = None
        self._loop: Union[asyncio.AbstractEventLoop, None] = None
        self._reason = "the connection was closed"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (called by asyncio)."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=64 * 1024 * 1024)
        self._loop = asyncio.get_running_loop()
        if self._outgoing:
            self._flush()

    def data_received(self, data: bytes) -> None:
        """Take bytes (called by asyncio)."""
        try:
            messages = self._reader.feed(data)
        except ProtocolError as error:
            self.close(f"{PROTOCOL_ERROR}: {error}")
            return
        if messages:
            self._received(messages)

    def connection_lost(self, exc: Union[Exception, None]) -> None:
        """End (called by asyncio)."""
        self._transport = None
        self._lost(str(exc) if exc else self._reason)

    def send(self, message: Message) -> None:
        """Queue a message; it leaves at the end of this turn of the loop."""
        self._outgoing.append(message)
        self.flush_soon()

    def send_lazily(self, message: Message) -> None:
        """Queue a message that nobody waits for; it leaves with the next one, or with `push`."""
        self._outgoing.append(message)

    def flush_soon(self) -> None:
        """Have everything that is queued leave at the end of this turn of the loop."""
        if self._outgoing and not self._leaving and self._loop is not None:
            self._leaving = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._leaving = False
        outgoing, self._outgoing = self._outgoing, []
        if outgoing:
            self._write(outgoing)

    def _write(self, messages: list[Message]) -> None:
        """Write messages as one frame; where that cannot be, each half of them by itself: what cannot be said is the fault of one of them."""
        if self._transport is None:
            return
        try:
            parts = encode(messages, self._dumps)
        except Exception as error:  # noqa: BLE001 - whatever an encoder says of values that it does not know
            if len(messages) > 1:
                middle = len(messages) // 2
                self._write(messages[:middle])
                self._write(messages[middle:])
            elif self._unsent is not None and self._loop is not None:
                self._loop.call_soon(
                    self._unsent, messages[0], f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]
                )
            return
        if self._authenticator is not None:
            parts.append(self._authenticator.sign(parts))
        self._transport.write(b"".join(parts))

    def close(self, reason: str = "closed") -> None:
        """Send what is queued and end the connection."""
        self._reason = reason
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End the connection at once, also where the other end takes nothing any more."""
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()
