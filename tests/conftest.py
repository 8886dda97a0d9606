from __future__ import annotations

import signal


def pytest_configure():
    # A shell starts what it puts into the background with interrupts ignored, and so are they in all that starts from there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
