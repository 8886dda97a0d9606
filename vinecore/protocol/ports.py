"""Listening, and naming who has come: for both families of addresses, on one port of a range."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

V4_IN_V6 = "::ffff:"


def resolve(host: str, port: int, flags: int = 0) -> list[tuple[Any, ...]]:
    """Find the addresses that a name stands for, as `socket.getaddrinfo` does.

    Raises
    ------
    OSError
        None is known; the text says of what name, and what to do.
    """
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))
    except (OSError, UnicodeError) as error:  # the latter where it cannot be a name at all: "a..b"
        reason = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else "it is not the name of a host"
        )
        msg = f"no address is known of the host {host!r} ({reason}): check how it is spelled, or give its address, such as 10.1.2.3"
        raise ConnectionError(msg) from error


def connect(address: tuple[str, int], timeout_s: float) -> socket.socket:
    """Connect to one after another of the addresses that a name stands for, until one answers.

    Raises
    ------
    OSError
        None does.
    """
    resolve(*address)
    return socket.create_connection(address, timeout=timeout_s)


def listen(
    address: str, ports: tuple[int, int], backlog: int, hint: str, rather: int = 0, option: str = "address="
) -> socket.socket:
    """Listen on the first free port of a range.

    Parameters
    ----------
    address
        Where; "" for all addresses that this machine has, of both families.
    ports
        The lowest and the highest; (0, 0) for any.
    hint
        What to do if none is free.
    rather
        One of them that is tried first; 0 for none.
    option
        What the user has named the address with.

    Raises
    ------
    OSError
        None is free, or the address is not one of this machine's.
    """
    low, high = ports
    if not address:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
    else:
        both = False
        try:
            family = resolve(address, low, socket.AI_PASSIVE)[0][0]
        except OSError as error:
            raise OSError(errno.EADDRNOTAVAIL, f"cannot listen on {option}{address}: {error}") from error
    problem = OSError(0, f"no port between {low} and {high}")
    first = [rather] if rather and (high == 0 or low < rather <= high) else []
    for port in (*first, *range(low, high + 1)):
        try:
            return socket.create_server((address, port), family=family, backlog=backlog, dualstack_ipv6=both)
        except OSError as error:
            problem = error
            if error.errno == errno.EADDRNOTAVAIL:
                msg = f"cannot listen on {option}{address}: {os.strerror(error.errno)}. Use an address of this machine, or none for all that it has"
                raise OSError(error.errno, msg) from error
    where = f"port {low}" if low == high else f"any port from {low} to {high}"
    at = f" (on {address})" if address else ""
    reason = os.strerror(problem.errno) if problem.errno else problem.strerror
    msg = f"cannot listen on {where}: {reason}{at}. {hint}"
    raise OSError(problem.errno, msg)


def parse_ports(text: str) -> tuple[int, int]:
    """Understand PORT and LOW:HIGH.

    Raises
    ------
    ValueError
        It is neither.
    """
    low, between, high = text.partition(":")
    if not between:
        high = low
    if not (low.isdigit() and high.isdigit() and int(low) <= int(high) < 65536 and (low == high or int(low))):
        msg = f"{text!r}: give a port, or the lowest and the highest one as LOW:HIGH, such as 9200:9299"
        raise ValueError(msg)
    return int(low), int(high)


def canonical_address(address: str) -> str:
    """Give an address as others know it: one of the older family that has come through a socket of the newer one, as it is."""
    return address[len(V4_IN_V6) :] if address.startswith(V4_IN_V6) and "." in address else address


def is_loopback(address: str) -> bool:
    """Whether an address means this machine wherever it is used."""
    return address == "::1" or address.startswith("127.")
