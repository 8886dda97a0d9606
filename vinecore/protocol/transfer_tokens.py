"""What a worker shows to a peer from which it fetches: that the manager has sent it, and for which file.

Each worker has a key of its own, which it and the manager make from that of their connection, so that it never travels. From the key of the worker that serves, the manager makes two things for the one
that fetches: a key for this pair, with which both prove who they are when they connect, and a token for each file. A token is good for one
file, one receiver, and some hours. These are counted from the server's `Welcome`, which the manager and the server both know: no clock has to be right.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Any

TOKEN_LIFETIME_S = 4 * 3600.0
"""A fetch may wait so long behind others on the worker that was asked to do it."""


def boot_clock() -> float:
    """Give seconds that pass on all machines alike, also while they sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _mac(key: bytes, text: str) -> bytes:
    """Give the keyed BLAKE2b of a text (RFC 7693): a fifth of the time of an HMAC, and there is one for every file that is fetched."""
    return hashlib.blake2b(text.encode(), key=key, digest_size=32).digest()


def worker_key(session: bytes) -> bytes:
    """Make the key of a worker from that of its connection to the manager."""
    return _mac(session, "worker")


def mask_key(session: bytes, peer: int, secret: bytes) -> bytes:
    """Make a pair's key unreadable, or readable again, for who does not have the key of the connection on which it is told."""
    return bytes(a ^ b for a, b in zip(secret, _mac(session, f"pair|{peer}")))


def pair_key(key: bytes, receiver: int) -> bytes:
    """Make what a worker with this key and a receiver have to know when they meet."""
    return _mac(key, f"peer|{receiver}")


def sign_token(key: bytes, receiver: int, name: str, expires: int) -> str:
    """Return the token for a file of the worker with this key; ``expires`` are seconds after its `Welcome`."""
    return _mac(key, f"fetch|{receiver}|{expires}|{name}").hex()


class TransferAuthorizer:
    """What a worker asks of its peers.

    Parameters
    ----------
    key
        Its own.

    Attributes
    ----------
    opened_at : float
        When it was welcomed, by `clock`.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.opened_at = boot_clock()

    def secret(self, greeting: dict[str, Any]) -> bytes:
        """Give what who greets like this has to know."""
        return pair_key(self._key, _receiver(greeting))

    def refusal_reason(self, greeting: dict[str, Any], request: dict[str, Any]) -> str:
        """Say why a request is refused to who has greeted like this; "" if it is not."""
        name, expires, token = (request.get(field) for field in ("get", "expires", "token"))
        if not (type(name) is str and type(expires) is int and type(token) is str):
            return "a request without a token"
        if not hmac.compare_digest(
            token.encode(errors="replace"),
            sign_token(self._key, _receiver(greeting), name, expires).encode(),
        ):
            return f"the token is not for {name[:200]}, or not for this worker"
        if boot_clock() - self.opened_at > expires:
            return f"the token for {name[:200]} has expired"
        return ""


def _receiver(greeting: dict[str, Any]) -> int:
    number = greeting.get("peer")
    return number if type(number) is int else 0
