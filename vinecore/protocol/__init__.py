"""What a manager and its workers say to each other: messages, frames, handshake, bulk data, values.

Both ends import this package and nothing of each other. It needs only the standard library and runs on
Python 3.9, because a worker starts on nodes that have nothing installed.
"""

from __future__ import annotations

VERSION = 8
"""Protocol number; a worker and a manager with different numbers refuse each other."""

MB = 1 << 20

INLINE_LIMIT = 64 * 1024
"""Objects up to this many bytes live in memory on a worker and ride in control frames."""
