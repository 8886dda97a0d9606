"""Tells a KeyboardInterrupt that a signal has made from one that user code raises.

The latter is an exception as any other. The former is somebody's order to this process: what it was doing is lost with it, and done again elsewhere.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
from typing import Any

_received = False


def install_handler() -> None:
    """Raise KeyboardInterrupt when the signal comes, as Python does, and remember it."""
    # each fork does this: `signal` would look up enumerations, and so copy fifty pages
    _signal.signal(_signal.SIGINT, _on_interrupt)


def _on_interrupt(_number: int, _frame: Any) -> None:
    global _received  # noqa: PLW0603 - there is one process, and so one signal
    _received = True
    raise KeyboardInterrupt


def reset_flag() -> None:
    """Reset the flag: later signals are about another call."""
    global _received  # noqa: PLW0603
    _received = False


def raise_if_signalled(error: BaseException) -> None:
    """Raise an exception again if it is what a signal has made."""
    if _received and isinstance(error, KeyboardInterrupt):
        raise error
