"""Vertices that run in one process one after another do not see what others have changed in it."""

from __future__ import annotations

import decimal
import os
import signal

import dask
import numpy as np

from daskvine import DaskVine


def leave(number):
    os.chdir("/")
    os.environ["LEFT"] = str(number)
    os.umask(0o777)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    np.seterr(all="raise")
    decimal.getcontext().prec = 3
    return os.getpid()


def look(slot):
    mask = os.umask(0o22)
    os.umask(mask)
    timer = signal.getitimer(signal.ITIMER_REAL)
    return (
        os.getcwd(),
        os.environ.get("LEFT"),
        mask,
        timer,
        np.geterr(),
        decimal.getcontext().prec,
        slot == os.getpid(),
    )


def close_output(number):
    os.close(1)
    return number


def close_all(number):
    os.closerange(3, 100)
    return number


def say(number):
    print("said", number)
    return number


def test_vertices_start_from_the_same_state():
    with DaskVine.local(workers=1, cores=1) as m:
        first = m.get({"look": (look, 0)}, "look", task_mode="function-calls")
        again = m.get({"leave": (leave, 1), "look": (look, "leave")}, "look", task_mode="function-calls")
        assert again == (*first[:-1], True)


def test_closing_foreign_objects_harms_no_others(m, capfd):
    """Vertices that close what is not theirs harm no others."""

    def graph(*closers):
        found = {}
        for number in range(6):
            found[f"close{number}"] = (closers[number % 2], number)
            found[f"say{number}"] = (say, f"close{number}")
        return found

    keys = list(graph(int, int))
    expected = dask.get(graph(int, int), keys)
    capfd.readouterr()
    assert m.get(graph(close_output, close_all), keys, task_mode="function-calls") == expected
    shown = capfd.readouterr().out
    assert [number for number in range(6) if f"said {number}" in shown] == [*range(6)]
