"""Graphs of tasks through the handle that front ends use."""

from __future__ import annotations

import pytest

from tests.harness import sample_tasks
from vinecore.protocol.serialization import values
from vinecore.protocol.serialization.placeholders import InputPlaceholder
from vinecore.scheduler.specs import TaskSpec


def task_spec(m, graph, function, *args, reads=(), **more):
    shared = m.declare_shared(function)
    number = graph.allocate_task_number()
    payload = values.dumps((args, {}))
    result = m.result_name(number)
    return TaskSpec(
        number, f"task {number}", result, graph.number, "", shared, payload, (shared,), reads, **more
    )


def wait_for(graph):
    while (outcome := graph.wait(0.1)) is None:
        pass
    return outcome


def test_results(m):
    """A task reads the result of another one, and what is wanted comes to the manager."""
    with m.open_graph("two", total=2, report_each_task=True) as graph:
        first = task_spec(m, graph, sample_tasks.add, 1, 2)
        reader = InputPlaceholder(0)
        last = task_spec(m, graph, sample_tasks.add, reader, 4, reads=(first.result,))
        last = last._replace(wanted_at_manager=(last.result,))
        graph.submit([first])
        graph.submit([last])
        graph.submitted()
        assert wait_for(graph).outcome == "success"
        assert graph.is_finished()
        assert {finished.task for finished in graph.finished_tasks()} == {first.task, last.task}
        status = graph.status()
        assert (status.total, status.done, status.running, status.unfinished) == (2, 2, 0, 0)
        content = graph.result(last.result)
        loaded = values.load_file(content) if isinstance(content, str) else values.loads(content)
        assert loaded == 7
        with pytest.raises(FileNotFoundError, match="wanted_at_manager"):
            graph.result("result-unknown")


def test_failure(m):
    """The outcome names the task that has failed."""
    with m.open_graph(total=1) as graph:
        bad = task_spec(m, graph, sample_tasks.add, 1, None)
        graph.submit([bad])
        graph.submitted()
        outcome = wait_for(graph)
    assert (outcome.outcome, outcome.task) == ("exception", bad.task)
    graph.close()


def test_numbers(m):
    """Two graphs have numbers of their own, and so have all tasks of a manager."""
    with m.open_graph() as one, m.open_graph() as other:
        assert one.number != other.number
        assert len({one.allocate_task_number(), other.allocate_task_number()}) == 2


def test_closed_manager(local_cluster):
    """No graph can be opened or waited for when the manager is closed."""
    m = local_cluster.start_manager()
    graph = m.open_graph()
    m.close()
    with pytest.raises(RuntimeError, match="closed"):
        graph.wait(0.01)
    with pytest.raises(RuntimeError, match="closed"):
        m.open_graph()
