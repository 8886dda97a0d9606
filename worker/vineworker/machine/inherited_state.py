"""What a process has inherited from whoever started it, and that must not reach a task: made as it is for a program that a shell starts.

A worker may be started by a daemon, by a batch system, with ``nohup`` or by a program that ignores what its children do; what all these have
set survives the execution of another program, and so would come to every task.
"""

from __future__ import annotations

import os
import signal
import sys

from vinecore.protocol import import_paths

KEPT_SIGNALS = {"SIGPIPE", "SIGXFSZ", "SIGXFZ", "SIGTTIN", "SIGTTOU", "SIGTSTP"}
"""Python ignores the first ones itself, and gives its children the default; the last ones are for whoever has the terminal."""


def reset_inherited_state() -> None:
    """Make this process as it should be, at its start: before there are threads, files or children."""
    open_standard_streams()
    unblock_signals()
    import_paths.restore_python_path()


def open_standard_streams() -> None:
    """Have something at the descriptors 0 to 2: what is opened next would be there, and be taken for standard input or output."""
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
    """Block no signal, hear of children, and ignore other signals only here: a handler is not inherited by what is executed, to be ignored is."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, nobody could be told how a child has ended
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and signal.Signals(number).name not in KEPT_SIGNALS:
            signal.signal(number, lambda _signal, _frame: None)
