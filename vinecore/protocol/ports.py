"""Listening, and naming who has come: for both families of addresses, on one port of a range."""

from __future__ import annotations

import os
import socket

V4_IN_V6 = "::ffff:"


def listen(address: str, ports: tuple[int, int], backlog: int, hint: str, rather: int = 0) -> socket.socket:
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
        family = socket.getaddrinfo(address, low, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    problem = OSError(0, f"no port between {low} and {high}")
    first = [rather] if rather and (high == 0 or low < rather <= high) else []
    for port in (*first, *range(low, high + 1)):
        try:
            return socket.create_server((address, port), family=family, backlog=backlog, dualstack_ipv6=both)
        except OSError as error:
            problem = error
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


def plain(address: str) -> str:
    """Give an address as others know it: one of the older family that has come through a socket of the newer one, as it is."""
    return address[len(V4_IN_V6) :] if address.startswith(V4_IN_V6) and "." in address else address


def is_loopback(address: str) -> bool:
    """Whether an address means this machine wherever it is used."""
    return address == "::1" or address.startswith("127.")
