"""Functions with many arguments: the values are those of plain Python."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, interrupt_when
from vinecore import PythonTask, Task

CHUNKS = pytest.mark.parametrize("chunksize", [1, 3, 100])


@pytest.fixture(scope="module")
def library(shared_manager):
    def squares(numbers):
        return [n * n for n in numbers]

    def products(pairs, shift=0):
        return tuple(a * b + shift for a, b in pairs)

    def total(numbers):
        return sum(numbers)

    def first(numbers):
        return numbers[:1]

    library = shared_manager.create_library_from_functions("numbers", squares, products, total, first)
    library.set_cores(1)
    shared_manager.install_library(library)
    return "numbers"


@CHUNKS
@pytest.mark.parametrize("make", [lambda: range(7), list, lambda: "text", lambda: (n for n in (3, 1, 2))])
def test_map_gives_values_in_order(m, make, chunksize):
    shift = 1000
    assert m.map(lambda x: (x, shift), make(), chunksize) == [(x, shift) for x in make()]


def test_map_keeps_values_that_are_lists(m):
    assert m.map(lambda n: [n] * n, [2, 0, 1], chunksize=2) == [[2, 2], [], [1]]


@CHUNKS
def test_pair_gives_each_pair_as_tuple(m, chunksize):
    expected = [a + b for a, b in itertools.product("abc", ["x", "y"])]
    assert m.pair(lambda pair: pair[0] + pair[1], "abc", iter(["x", "y"]), chunksize) == expected


def test_pair_runs_in_an_environment(m, packed):
    def word(pair):
        import only_in_archive

        return only_in_archive.WORD, pair

    assert m.pair(word, [1], [2], env=packed) == [("packed", (1, 2))]


@pytest.mark.parametrize("chunksize", [2, 3, 100])
@pytest.mark.parametrize("count", [1, 2, 6, 7])
def test_tree_reduce_keeps_order_of_elements(m, count, chunksize):
    words = [chr(ord("a") + n) for n in range(count)]
    assert m.tree_reduce("".join, words, chunksize) == functools.reduce(operator.add, words)


def test_tree_reduce_passes_lone_elements_on(m):
    """The function always gets at least two elements."""
    assert m.tree_reduce(lambda pair: f"({pair[0]}{pair[1]})", "abcde") == "(((ab)(cd))e)"


def test_nothing_cannot_be_reduced(m):
    with pytest.raises(ValueError, match="empty"):
        m.tree_reduce(sum, [])


@CHUNKS
def test_remote_forms_give_values_of_library(m, library, chunksize):
    numbers = list(range(5))
    assert m.remote_map("squares", numbers, library, "numbers", chunksize) == [n * n for n in numbers]
    expected = [a * b for a, b in itertools.product(numbers, [10, 20])]
    assert m.remote_pair("products", numbers, [10, 20], library, "pairs", chunksize) == expected
    reduced = m.remote_tree_reduce("total", numbers, library, "numbers", max(2, chunksize))
    assert reduced == sum(numbers)


def test_remote_function_has_to_keep_count(m, library):
    with pytest.raises(ValueError, match="a value for each element"):
        m.remote_map("first", [1, 2, 3], library, "numbers", 2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: m.map(len, [[]], chunksize=0), "chunksize"),
        (lambda m: m.tree_reduce(sum, [1, 2], chunksize=1), "chunksize"),
        (lambda m: m.map(None, [1]), "fn"),
        (lambda m: m.remote_map("f", [1], "no such library", "x"), "no such library"),
    ],
)
def test_bad_arguments_are_refused(m, call, text):
    with pytest.raises((TypeError, ValueError), match=text):
        call(m)


def test_first_exception_in_order_is_raised(m, tmp_path):
    """The exception of an earlier element counts, although a later one has failed before."""
    late = tmp_path / "late element has failed"

    def invert(n):
        if n == 5:
            late.touch()
            raise KeyError(n)
        if n == 2:
            while not late.exists():
                time.sleep(0.01)
            return 1 / 0
        return n

    with pytest.raises(ZeroDivisionError, match="division by zero"):
        m.map(invert, range(6))
    assert m.empty()


def test_failure_cancels_later_elements(m, tmp_path):
    """What the elements after the failure would do is not waited for."""
    with pytest.raises(ZeroDivisionError):
        m.map(lambda n: 1 / 0 if n == 0 else time.sleep(600), range(20))
    assert m.empty()


def test_interrupted_map_cancels_its_tasks(m, tmp_path):
    started = tmp_path / "started"

    def hang(_n):
        started.touch()
        time.sleep(600)

    with pytest.raises(KeyboardInterrupt), interrupt_when(started.exists):
        m.map(hang, range(20))
    assert m.empty()
    assert m.map(os.path.basename, ["a/b"]) == ["b"]


def test_wait_in_other_thread_gets_other_tasks(m, tmp_path):
    marker = tmp_path / "ended"
    other = Task(f"until [ -e {marker} ]; do sleep 0.01; done", cores=1)
    m.submit(other)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(m.wait, PATIENCE_S)
        assert m.map(abs, range(-20, 0)) == list(range(20, 0, -1))
        marker.touch()
        assert waiting.result() is other


def test_other_tasks_are_left_to_wait(m):
    other = m.submit(PythonTask(sample_tasks.add, 1, 2))
    assert m.map(abs, [-1, -2]) == [1, 2]
    task = m.wait(PATIENCE_S)
    assert (task.id, task.output, m.empty()) == (other, 3, True)
