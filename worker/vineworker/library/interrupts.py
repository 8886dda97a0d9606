"""Distinguish a KeyboardInterrupt of a signal from one that user code raises.

The latter is an exception like others. The former is an order to this process: its work is lost,
and done again elsewhere.
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
    """Raise an exception again if a signal has caused it."""
    if _received and isinstance(error, KeyboardInterrupt):
        raise error
