"""Reset what a process has inherited and must not pass to tasks.

A daemon, a batch system, ``nohup`` or a program that ignores its children may start a worker. Their
settings survive the execution of another program, so all tasks would have them. Here they are reset
to those of a program that a shell starts.
"""

from __future__ import annotations

import os
import signal
import sys

from vinecore.protocol import import_paths

KEPT_SIGNALS = {"SIGPIPE", "SIGXFSZ", "SIGXFZ", "SIGTTIN", "SIGTTOU", "SIGTSTP"}
"""Signals that stay ignored.

Python ignores the first ones itself, and resets them in its children; the last ones belong to the
terminal.
"""


def reset_inherited_state() -> None:
    """Reset inherited state, before this process has threads, files or children."""
    open_standard_streams()
    unblock_signals()
    import_paths.restore_python_path()


def open_standard_streams() -> None:
    """Open the descriptors 0 to 2 if they are closed.

    Otherwise the next files would be there, and be taken for standard input or output.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def unblock_signals() -> None:
    """Block no signals, receive those of children, and pass ignored signals on as defaults.

    An executed program inherits that a signal is ignored, but no handler. So a handler that does
    nothing ignores the signal only here.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # while the signal is ignored, the kernel does not keep the exit codes of children
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and signal.Signals(number).name not in KEPT_SIGNALS:
            signal.signal(number, lambda _signal, _frame: None)
