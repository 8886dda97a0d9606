"""Workloads: what is generated, what is read, and what is refused."""

import json

import pytest

from vinecore.simulate import GRAPHS, SimulatedFile, SimulatedTask, Workload, WorkloadError, generate, load


def keys(workload):
    return [job.key for job in workload.jobs]


def test_makers_precede_readers_in_order():
    """Makers come before readers and all else keeps its order."""
    jobs = [
        SimulatedTask("sum", ("b", "a")),
        SimulatedTask("other"),
        SimulatedTask("a"),
        SimulatedTask("b", ("data",)),
    ]
    assert keys(Workload(jobs, [SimulatedFile("data", 10)])) == ["b", "a", "sum", "other"]


def test_long_chain_is_ordered():
    """A chain of any length is put in order."""
    jobs = [SimulatedTask(f"t{n}", (f"t{n - 1}",) if n else ()) for n in reversed(range(5000))]
    assert keys(Workload(jobs))[-1] == "t4999"


def test_results_that_nobody_reads_are_wanted():
    workload = Workload([SimulatedTask("a"), SimulatedTask("b", ("a",)), SimulatedTask("c")])
    assert [job.key for job in workload.jobs if job.wanted] == ["b", "c"]


@pytest.mark.parametrize(
    ("jobs", "files", "what"),
    [
        ([], [], "without tasks"),
        ([SimulatedTask("a"), SimulatedTask("a")], [], "two tasks called a"),
        ([SimulatedTask("a")], [SimulatedFile("f"), SimulatedFile("f")], "two files called f"),
        ([SimulatedTask("a")], [SimulatedFile("a")], "the same name"),
        ([SimulatedTask("a", ("x", "y"))], [], "task a reads x, y, which no task makes"),
        (
            [SimulatedTask("c"), SimulatedTask("a", ("b",)), SimulatedTask("b", ("a",))],
            [],
            "wait for each other: a, b",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(jobs, files, what):
    with pytest.raises(WorkloadError, match=what):
        Workload(jobs, files)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("tasks", [1, 2, 9, 100])
def test_graphs_have_requested_tasks(graph, tasks):
    """Every graph has the tasks that were asked for."""
    workload = generate(graph, tasks, fan_in=3)
    assert tasks - 1 <= len(workload.jobs) <= tasks
    assert len(workload.jobs) >= 1


def test_tree_has_one_end_and_bounded_merges():
    """A tree has one end and merges no more than it should."""
    workload = generate("tree", 1000, fan_in=7, reads=5.0)
    assert sum(job.wanted for job in workload.jobs) == 1
    assert max(len(job.inputs) for job in workload.jobs) == 7
    leaves = [job for job in workload.jobs if not job.inputs]
    assert {job.reads for job in leaves} == {5}
    read = [name for job in workload.jobs for name in job.inputs]
    assert len(read) == len(set(read)) == len(workload.jobs) - 1


def test_the_same_seed_draws_the_same():
    durations = [
        [job.seconds for job in generate(tasks=50, spread=0.5, seed=seed).jobs] for seed in (1, 1, 2)
    ]
    assert durations[0] == durations[1] != durations[2]
    assert 0.7 < sum(durations[0]) / 50 < 1.4


def test_written_description_is_read(tmp_path):
    """A description is read as it was written."""
    path = tmp_path / "mine.json"
    jobs = [
        SimulatedTask("a", ("data",), 2.5, 10, 7, "lib", "kind"),
        SimulatedTask("b", ("a",), cores=2.0, wanted=True),
    ]
    said = Workload(jobs, [SimulatedFile("data", 100, "manager")])
    path.write_text(json.dumps(said.describe()))
    read = load(path)
    assert (read.jobs, read.files) == (said.jobs, said.files)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 200_000, "cannot be read as JSON"),
        ("[]", 'expected {"tasks"'),
        ('{"tasks": []}', "without tasks"),
        ('{"tasks": [7]}', "task number 0: 7 is not an object"),
        ('{"tasks": [{"seconds": 1}]}', 'task number 0 has no "key"'),
        ('{"tasks": [{"key": "a", "second": 1}]}', "task a: second is not known; there are key"),
        ('{"tasks": [{"key": "a", "seconds": -1}]}', "task a: seconds is -1"),
        ('{"tasks": [{"key": "a", "size": "1"}]}', "task a: size is '1'"),
        ('{"tasks": [{"key": "a", "inputs": "b"}]}', "task a: inputs='b' is not a list"),
        ('{"tasks": [{"key": "a"}], "files": ["f"]}', '"files" has to map'),
        ('{"tasks": [{"key": "a"}], "files": {"f": {"at": "home"}}}', "file f: it is at 'home'"),
    ],
)
def test_wrong_description_is_refused_with_place(tmp_path, text, what):
    """A description that is wrong is refused with its place."""
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(WorkloadError) as caught:
        load(path)
    assert what in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_description_is_named(tmp_path):
    """A description that is not there is named."""
    with pytest.raises(WorkloadError, match=r"nothing\.json"):
        load(tmp_path / "nothing.json")


def test_unknown_graph_names_known_ones():
    """A graph that nobody knows is refused with those that are known."""
    with pytest.raises(WorkloadError, match=r"'three': there are tree"):
        generate("three")
