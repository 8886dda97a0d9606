"""The executor does what `concurrent.futures` promises, and computes what a ThreadPoolExecutor does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor
from typing import NamedTuple

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import (
    PATIENCE_S,
    list_recursively,
    scheduler_state,
    wait_until,
)
from vinecore import File, Task, TaskFailed, futures
from vinecore.futures import RESULT_PENDING, FuturesExecutor, VineFuture
from vinecore.protocol import INLINE_LIMIT

LARGE = 4 * INLINE_LIMIT


class Pair(NamedTuple):
    left: int
    right: int


@pytest.fixture
def executor(m):
    with FuturesExecutor(manager=m, factory=False) as executor:
        yield executor
        for future in list(executor._session._unfinished):
            future.cancel()


@pytest.fixture
def gate(tmp_path):
    """A file that lets `held` tasks end."""
    return tmp_path / "gate"


@pytest.fixture
def held(executor, tmp_path, gate):
    """Submit a task that runs until the gate is open; give its future when it runs."""

    def submit(number=0):
        future = executor.submit(sample_tasks.held, str(tmp_path), f"held-{number}", gate.name)
        wait_until((tmp_path / f"held-{number}").exists, "the start of the task")
        return future

    yield submit
    gate.touch()


def capture(*args, **kwargs):
    return args, kwargs


def add(x, y, negate=False):
    return -(x + y) if negate else x + y


def fail(text="expected"):
    raise KeyError(text)


def contents(manager, future):
    """Return the number of workers that have the value, and whether the manager has it."""
    name = future._file.cache_name
    return manager.get_file_replica_count(future._file), manager.holds_result(name)


def files(manager):
    """Return the results that the scheduler knows of."""
    return scheduler_state(
        manager, lambda scheduler: {name for name in scheduler.state.files if name.startswith("result-")}
    )


def new_threads(before):
    """Return the engine's threads that have come since, and run."""
    return [t for t in threading.enumerate() if t.name.startswith("vine") and t not in before]


class TestSubmit:
    def test_values_equal_those_of_threads(self, executor):
        """The same program with both executors."""

        def compute(pool):
            first = [pool.submit(pow, n, 2) for n in range(8)]
            second = [pool.submit(capture, n, text="x", other=[n]) for n in range(4)]
            mapped = list(pool.map(add, range(5), range(5, 9)))
            chunks = list(pool.map(abs, range(-9, 3), chunksize=4))
            return [future.result() for future in first + second], mapped, chunks

        with ThreadPoolExecutor(2) as threads:
            assert compute(executor) == compute(threads)

    def test_keywords_of_any_name_pass(self, executor):
        future = executor.submit(capture, 1, self=2, fn=3, manager=4, func=5, function=6)
        assert future.result() == ((1,), {"self": 2, "fn": 3, "manager": 4, "func": 5, "function": 6})
        with pytest.raises(TypeError):
            executor.submit(fn=capture, arg=1)
        with pytest.raises(TypeError, match="cannot be called"):
            executor.submit(3)

    def test_is_a_standard_executor(self, executor):
        future = executor.submit(abs, -1)
        assert isinstance(executor, concurrent.futures.Executor)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result() is future.result()
        assert future.done()
        assert not future.running()
        assert not future.cancel()
        assert not future.cancelled()

    def test_function_gets_one_core(self, executor, m, held):
        """Four functions run at the same time on four cores."""
        assert all(future.running() for future in [held(number) for number in range(4)])

    def test_submit_from_eight_threads(self, executor):
        def submit_chain(start):
            future = executor.submit(abs, start)
            for _ in range(4):
                future = executor.submit(add, future, 1)
            return future.result(PATIENCE_S)

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(submit_chain, range(16))) == [n + 4 for n in range(16)]


class TestArguments:
    def test_nested_futures_become_values(self, executor):
        a, b = executor.submit(abs, -1), executor.submit(abs, -2)
        (args, kwargs) = executor.submit(
            capture, a, [b, (a, {"k": b, a: 3})], Pair(a, 5), {b}, key={"deep": [[a]]}
        ).result()
        assert args == (1, [2, (1, {"k": 2, 1: 3})], Pair(1, 5), {2})
        assert type(args[2]) is Pair
        assert kwargs == {"key": {"deep": [[1]]}}

    def test_same_future_twice_is_one_object(self, executor):
        shared = executor.submit(list, "ab")

        def is_same(x, within):
            return x is within[0]

        assert executor.submit(is_same, shared, [shared]).result()

    def test_large_values_stay_on_workers(self, executor, m):
        made = executor.submit(bytes, LARGE)
        assert executor.submit(len, made).result() == LARGE
        assert made.done()
        assert made.exception() is None
        assert contents(m, made) == (1, False)
        assert made.result() == bytes(LARGE)
        assert contents(m, made)[1]

    def test_small_values_come_home_at_once(self, executor, m):
        made = executor.submit(bytes, 10)
        concurrent.futures.wait([made], PATIENCE_S)
        assert contents(m, made) == (1, True)

    def test_unsubmitted_future_is_refused(self, executor):
        task = executor.future_task(abs, -1)
        with pytest.raises(ValueError, match="submit it first"):
            executor.submit(abs, task.future)

    def test_future_inside_object_names_remedy(self, executor):
        holder = type("Holder", (), {})()
        holder.value = executor.submit(abs, -1)
        with pytest.raises(TypeError, match=r"future\.result\(\)"):
            executor.submit(capture, holder)

    def test_declared_files_may_be_nested(self, executor, m):
        made = executor.future_task(list, "ab")
        executor.submit(made).result()
        assert isinstance(made.output_file, File)
        assert executor.submit(capture, {"in": made.output_file}).result() == (({"in": ["a", "b"]},), {})

    def test_lost_value_is_made_again(self, local_cluster):
        """Also if the futures it is made of are gone."""
        m = local_cluster.start_manager()
        with FuturesExecutor(manager=m, factory=False) as executor:
            [first] = local_cluster.start_workers(m, 1)
            future = executor.submit(add, executor.submit(bytes, LARGE), executor.submit(bytes, 1))
            assert future.exception(PATIENCE_S) is None
            first.kill()
            local_cluster.start_worker(m)
            assert future.result(PATIENCE_S) == bytes(LARGE + 1)


class TestFailures:
    def test_exception_is_as_raised(self, executor):
        future = executor.submit(fail)
        with pytest.raises(KeyError, match="expected") as caught:
            future.result()
        assert future.exception() is caught.value
        assert repr(future).endswith("failed>")

    def test_returned_exception_is_a_value(self, executor):
        future = executor.submit(ValueError, "as a value")
        assert repr(future.result()) == "ValueError('as a value')"
        assert future.exception() is None

    def test_readers_fail_with_first_cause(self, executor):
        """However long the chain is."""
        first = executor.submit(fail, "first")
        chain = [first]
        for _ in range(3):
            chain.append(executor.submit(capture, [chain[-1]]))
        for reader in chain[1:]:
            error = reader.exception(PATIENCE_S)
            assert isinstance(error, TaskFailed)
            assert error.__cause__ is first.exception()
            assert "KeyError('first')" in str(error)
        late = executor.submit(capture, first)
        assert late.exception(PATIENCE_S).__cause__ is first.exception()

    def test_readers_of_cancelled_future_fail(self, executor, held):
        first = held()
        reader = executor.submit(capture, first)
        assert first.cancel()
        assert isinstance(reader.exception(PATIENCE_S).__cause__, CancelledError)

    def test_value_that_cannot_load_raises(self, executor):
        class Fragile:
            def __reduce__(self):
                return exec, (f"import os\nif os.getpid() == {pid}: raise LookupError('not here')",)

        pid = os.getpid()
        future = executor.submit(Fragile)
        with pytest.raises(LookupError, match="not here"):
            future.result()
        assert isinstance(future.exception(), LookupError)


class TestWaiting:
    def test_timeouts(self, held):
        future = held()
        for timeout in (0, 0.01):
            with pytest.raises(concurrent.futures.TimeoutError):
                future.result(timeout)
            with pytest.raises(concurrent.futures.TimeoutError):
                future.exception(timeout=timeout)
        assert future.running()

    def test_forever_is_a_text(self, executor):
        assert executor.submit(abs, -3).result("wait_forever") == 3
        assert executor.submit(abs, -3).exception(timeout=None) is None

    @pytest.mark.parametrize("module", [concurrent.futures, futures])
    def test_wait_returns_when_asked(self, module, executor, held):
        slow, fast, bad = held(), executor.submit(abs, -1), executor.submit(fail)
        done, rest = module.wait([slow, fast], return_when=FIRST_COMPLETED)
        assert (done, rest) == ({fast}, {slow})
        assert module.wait([slow, bad], return_when=FIRST_EXCEPTION).done == {bad}
        assert module.wait([slow, fast], timeout=0.01).not_done == {slow}
        slow.cancel()
        assert module.wait([slow, fast, bad], timeout=PATIENCE_S).not_done == set()

    @pytest.mark.parametrize("module", [concurrent.futures, futures])
    def test_as_completed_yields_ended_ones(self, module, executor, held, gate):
        slow, fast = held(), executor.submit(abs, -1)
        iterator = module.as_completed([slow, fast], timeout=PATIENCE_S)
        assert next(iterator) is fast
        gate.touch()
        assert next(iterator) is slow
        with pytest.raises(concurrent.futures.TimeoutError):
            list(module.as_completed([executor.submit(time.sleep, 600)], timeout=0.01))

    def test_callbacks_may_wait_for_futures(self, executor):
        """A callback does not stop the manager, and its errors stop no other callback."""
        seen = []
        first, second = executor.submit(bytes, LARGE), executor.submit(abs, -2)

        def look(future):
            seen.append((future, len(future.result()), second.result()))

        first.add_done_callback(lambda _future: 1 / 0)
        first.add_done_callback(look)
        wait_until(lambda: seen, "the callback")
        assert seen == [(first, LARGE, 2)]
        first.add_done_callback(seen.append)
        assert seen[1:] == [first]

    def test_asyncio_awaits_futures(self, executor):
        async def gather():
            pending = [asyncio.wrap_future(executor.submit(pow, n, 2)) for n in range(5)]
            large = asyncio.wrap_future(executor.submit(bytes, LARGE))
            bad = asyncio.wrap_future(executor.submit(fail))
            loop = asyncio.get_running_loop()
            return await asyncio.gather(
                *pending, large, bad, loop.run_in_executor(executor, abs, -7), return_exceptions=True
            )

        *values, large, error, seven = asyncio.run(gather())
        assert values == [0, 1, 4, 9, 16]
        assert large == bytes(LARGE)
        assert isinstance(error, KeyError)
        assert seven == 7


class TestCancelling:
    def test_running_task_is_cancelled(self, m, held):
        future = held()
        called = []
        future.add_done_callback(called.append)
        assert future.cancel()
        assert future.cancel()
        assert future.cancelled()
        assert future.done()
        assert called == [future]
        for read in (future.result, future.exception):
            with pytest.raises(CancelledError):
                read()
        wait_until(
            lambda: not any(worker["tasks"] for worker in m.summarize_workers()), "the end of the process"
        )

    def test_cancelled_by_manager(self, m, held):
        future = held()
        called = threading.Event()
        future.add_done_callback(lambda _future: called.set())
        m.cancel_all()
        assert called.wait(PATIENCE_S)
        assert future.cancelled()
        assert m.empty()

    def test_futures_stay_out_of_wait(self, m, executor):
        """Tasks of the manager's own come back, those of futures do not."""
        number = m.submit(Task("true", cores=1))
        executor.submit(abs, -1).result()
        assert m.wait(PATIENCE_S).id == number
        assert m.empty()


class TestDropping:
    def test_dropped_future_frees_its_file(self, m, executor):
        before = files(m)
        kept = executor.submit(bytes, LARGE)
        reader = executor.submit(len, kept)
        assert reader.result() == LARGE
        reference = weakref.ref(kept)
        del kept
        assert reference() is None  # without the garbage collector
        assert len(files(m) - before) == 1
        del reader
        assert files(m) == before

    def test_future_dropped_early_still_runs(self, m, executor, tmp_path, held, gate):
        before = files(m)
        future = held()
        executor.submit(sample_tasks.held, str(tmp_path), "after", gate.name)
        del future
        gate.touch()
        wait_until((tmp_path / "after").exists, "the task without a future")
        wait_until(lambda: files(m) == before, "the end of its file")

    def test_collection_in_any_thread_is_harmless(self, executor):
        """Cycles of futures that are collected while others are submitted."""
        stop = threading.Event()

        def collect():
            while not stop.is_set():
                gc.collect()

        collector = threading.Thread(target=collect)
        collector.start()
        try:
            for number in range(30):
                cycle = [executor.submit(abs, -number)]
                cycle.append(cycle)
                assert cycle[0].result(PATIENCE_S) == number
        finally:
            stop.set()
            collector.join()


class TestTasks:
    def test_tasks_with_settings(self, executor):
        """As TaskVine's own programs use them."""
        first = executor.future_task(add, 7, 4)
        first.set_cores(1)
        first.set_env_var("GREETING", "hello")
        a = executor.submit(first)
        second = executor.future_task(add, a, a, negate=True)
        second.set_cores(1)
        b = executor.submit(second)
        assert second.output() == -22
        assert b.result() == -22
        assert second.successful()
        assert second.future is b
        greeting = executor.future_task(os.getenv, "GREETING")
        greeting.set_env_var("GREETING", "hello")
        executor.submit(greeting)
        assert greeting.output(PATIENCE_S) == "hello"

    def test_output_names_pending_and_errors(self, executor, tmp_path, gate):
        slow = executor.future_task(sample_tasks.held, str(tmp_path), "slow", gate.name)
        slow.set_cores(1)
        executor.submit(slow)
        assert slow.output(0.01) == RESULT_PENDING
        bad = executor.future_task(fail)
        executor.submit(bad)
        gate.touch()
        assert isinstance(bad.output(PATIENCE_S), KeyError)
        assert slow.output(PATIENCE_S) != RESULT_PENDING

    def test_task_is_submitted_once(self, executor):
        task = executor.future_task(abs, -1)
        executor.submit(task).result()
        with pytest.raises(ValueError, match="make another task"):
            executor.submit(task)
        with pytest.raises(TypeError, match="arguments already"):
            executor.submit(executor.future_task(abs), -1)

    def test_subclass_prepares_itself(self, executor):
        class Prepared(futures.FuturePythonTask):
            def submit_finalize(self):
                self.set_env_var("GREETING", "prepared")
                super().submit_finalize()

        task = Prepared(executor.manager, os.getenv, "GREETING")
        assert executor.submit(task).result() == "prepared"

    def test_task_runs_in_environment(self, executor, m, packed):
        def read_word():
            import only_in_archive

            return only_in_archive.WORD

        task = executor.future_task(read_word)
        task.add_environment(m.declare_poncho(str(packed)))
        assert executor.submit(task).result() == "packed"

    def test_raw_bytes(self, executor):
        task = executor.future_task(bytes, 3)
        task.disable_output_serialization()
        assert executor.submit(task).result() == bytes(3)

    def test_library_calls(self, executor):
        library = executor.create_library_from_functions("futures-library", add, fail, sum_of)
        library.set_cores(1)
        executor.install_library(library)
        a = executor.submit(executor.future_funcall("futures-library", "add", 7, 4))
        b = executor.submit(executor.future_funcall("futures-library", add, a, a))
        last = executor.future_funcall("futures-library", "add", b, y=a)
        executor.submit(last)
        assert last.output() == 33
        error = executor.submit(executor.future_funcall("futures-library", "fail")).exception()
        assert isinstance(error, KeyError)
        assert executor.map("add", [1, 2], [3, 4], library_name="futures-library").result() == [4, 6]
        assert executor.allpairs(add, [1, 2], [3, 4], "futures-library").result() == [[4, 5], [5, 6]]
        assert executor.reduce("sum_of", range(10), "futures-library", fn_arity=3).result() == 45
        executor.manager.remove_library("futures-library")


def sum_of(values):
    return sum(values)


class TestHigherOrder:
    def test_map_is_future_and_iterator(self, executor):
        doubles = executor.map(lambda x: 2 * x, range(11), chunk_size=3)
        total = executor.submit(sum, doubles)
        assert isinstance(doubles, VineFuture)
        assert next(doubles) == 0
        assert doubles.result() == [2 * x for x in range(11)]
        assert total.result() == 110
        assert list(doubles) == [2 * x for x in range(1, 11)]
        assert executor.map(abs, [-1], None, 5).result() == [1]
        assert executor.map(abs, []).result() == []

    @pytest.mark.parametrize("size", [1, 3])
    def test_iteration_keeps_no_values(self, executor, size):
        values = executor.map(lambda n: {n}, range(4), chunksize=size)
        for value in values:
            reference = weakref.ref(value)
            del value
            assert reference() is None
        assert values.result() == [{n} for n in range(4)]

    def test_map_raises_where_it_fails(self, executor):
        values = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
        assert next(values) == (0, 1)
        assert next(values) == (0, 1)
        with pytest.raises(ZeroDivisionError):
            next(values)
        with pytest.raises(ZeroDivisionError):
            executor.map(divmod, [1, 1], [0, 1]).result()
        assert isinstance(executor.map(divmod, [1], [0]).exception(), ZeroDivisionError)

    def test_map_times_out(self, executor):
        values = executor.map(time.sleep, [0, 600], timeout=5)
        assert next(values) is None
        with pytest.raises(concurrent.futures.TimeoutError):
            next(values)

    def test_cancelled_map_ends_its_tasks(self, executor, tmp_path):
        values = executor.map(time.sleep, [600, 600])
        wait_until(values.running, "the start")
        assert values.cancel()
        assert values.cancelled()
        with pytest.raises(CancelledError):
            values.result()
        assert not executor._session._unfinished

    @pytest.mark.parametrize(("arity", "chunk"), [(2, 2), (25, 2), (1000, 2), (2, 50), (11, 13)])
    def test_reduce(self, executor, arity, chunk):
        numbers = list(range(101))
        assert executor.reduce(sum, numbers, fn_arity=arity, chunk_size=chunk).result() == sum(numbers)

    def test_reduce_of_futures(self, executor):
        parts = [executor.submit(abs, -n) for n in range(7)]
        assert executor.reduce(max, parts, chunk_size=4).result() == 6
        assert executor.reduce(max, [executor.submit(abs, -3)]).result() == 3
        with pytest.raises(TypeError, match="no items"):
            executor.reduce(max, [])
        with pytest.raises(ValueError, match="fn_arity"):
            executor.reduce(max, [1], fn_arity=1)

    def test_functions_for_workers(self, executor):
        parts = executor.submit(futures.run_iterable, abs, -1, -2, executor.submit(abs, -3))
        assert executor.submit(futures.retrieve_output, parts).result() == [1, 2, 3]
        assert executor.submit(futures.reduction_tree, max, 1, parts.result()[2], 2, n=2).result() == 3
        with pytest.raises(ValueError, match="at least one item"):
            futures.reduction_tree(max)

    def test_allpairs(self, executor):
        table = executor.allpairs(lambda x, y: x * y, range(3), range(7), chunk_size=5)
        assert executor.submit(len, table).result() == 3
        assert table.result() == [[x * y for y in range(7)] for x in range(3)]
        assert executor.allpairs(add, [1, 2], []).result() == [[], []]


class TestShutdown:
    def test_values_outlive_the_executor(self, local_cluster):
        """All that the program can still ask for, and nothing of the rest."""
        threads = set(threading.enumerate())
        with FuturesExecutor(port=0, factory=False) as executor:
            local_cluster.start_worker(executor.manager, secret=executor.manager.password_file)
            read = executor.submit(bytes, LARGE)
            last = executor.submit(bytes, LARGE)
            count = executor.submit(len, read)
            failed = executor.submit(fail)
            mapped = executor.map(abs, [-1, -2])
        assert last.result() == bytes(LARGE)
        assert count.result() == LARGE
        assert list(mapped) == [1, 2]
        assert isinstance(failed.exception(), KeyError)
        with pytest.raises(FileNotFoundError, match="when the manager was closed"):
            read.result()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(abs, -1)
        executor.shutdown()
        wait_until(lambda: not new_threads(threads), "the end of all threads")

    def test_waiting_tasks_are_cancelled(self, local_cluster):
        gate, threads = local_cluster.path("gate"), set(threading.enumerate())
        executor = FuturesExecutor(port=0, factory=False)
        m = executor.manager
        local_cluster.start_worker(m, "--cores", "1", secret=m.password_file)
        running = executor.submit(sample_tasks.held, str(local_cluster.folder), "begun", gate.name)
        waiting = [executor.submit(capture, running), executor.submit(abs, -1)]
        wait_until(local_cluster.path("begun").exists, "the start")
        executor.shutdown(wait=False, cancel_futures=True)
        assert [future.cancelled() for future in (running, *waiting)] == [False, True, True]
        gate.touch()
        assert running.exception(PATIENCE_S) is None
        wait_until(lambda: not new_threads(threads), "the end of the manager")

    def test_closed_manager_cancels_futures(self, local_cluster):
        m = local_cluster.start_manager()
        future = FuturesExecutor(manager=m, factory=False).submit(abs, -1)
        m.close()
        assert future.cancelled()

    def test_factory_follows_options(self, local_cluster):
        opts = {"min-workers": 1, "max-workers": 1, "cores": 2}
        with FuturesExecutor(port=0, opts=opts) as executor:
            assert executor.get("max-workers") == 1
            executor.set("max-workers", 2)
            assert executor.factory.max_workers == 2
            assert executor.submit(abs, -5).result(PATIENCE_S) == 5
            workers = [process.pid for process in executor.factory.processes]
            assert workers
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), "the end of workers")
        assert list_recursively(local_cluster.path("tmp")) == []

    def run_program(self, local_cluster, text, *, interrupt_at=""):
        """Run a program with a worker; interrupt it when it has made a file."""
        body = textwrap.dedent(text)
        program = local_cluster.path("program.py")
        program.write_text(
            "import sys, time, pathlib\nfrom vinecore.futures import FuturesExecutor\n"
            "def mark(name, seconds=0):\n    pathlib.Path(name).touch()\n    time.sleep(seconds)\n"
            "if __name__ == '__main__':\n"
            "    opts = {'min-workers': 1, 'max-workers': 1, 'cores': 2}\n" + textwrap.indent(body, "    ")
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        process = subprocess.Popen(
            [sys.executable, str(program)], cwd=local_cluster.folder, env=environment, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        if interrupt_at:
            wait_until(local_cluster.path(interrupt_at).exists, "the start of the task")
            process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=PATIENCE_S)[1]
        wait_until(lambda: list_recursively(local_cluster.path("tmp")) == [], "the end of all files")
        return process.returncode, errors

    def test_interrupt_ends_everything(self, local_cluster):
        code, errors = self.run_program(
            local_cluster,
            f"""
            with FuturesExecutor(port=0, opts=opts) as executor:
                slow = executor.submit(mark, {str(local_cluster.path("begun"))!r}, 600)
                executor.submit(mark, {str(local_cluster.path("never"))!r}, slow).result()
            """,
            interrupt_at="begun",
        )
        assert code == -signal.SIGINT
        assert errors.strip().endswith("KeyboardInterrupt")
        assert not local_cluster.path("never").exists()

    def test_forgotten_executor_finishes_at_exit(self, local_cluster):
        """As the tasks of a ThreadPoolExecutor do."""
        code, errors = self.run_program(
            local_cluster,
            f"""
            executor = FuturesExecutor(port=0, opts=opts)
            executor.submit(mark, {str(local_cluster.path("first"))!r})
            executor.submit(mark, {str(local_cluster.path("second"))!r})
            """,
        )
        assert (code, errors) == (0, "")
        assert local_cluster.path("first").exists()
        assert local_cluster.path("second").exists()

    def test_dropped_executor_ends_by_itself(self, local_cluster):
        threads = set(threading.enumerate())
        executor = FuturesExecutor(port=0, factory=False)
        local_cluster.start_worker(executor.manager, secret=executor.manager.password_file)
        values = executor.map(abs, [-1, -2])
        del executor
        gc.collect()
        wait_until(lambda: not new_threads(threads), "the end of the manager")
        assert list(values) == [1, 2]
