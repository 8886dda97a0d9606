"""Categories as a user sets them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.harness.processes import PATIENCE_S, scheduler_state
from vinecore import Task
from vinecore.resources.categories import MODES


@pytest.mark.parametrize(("number", "name"), list(enumerate(MODES)))
def test_mode_is_given_by_number(m, number, name):
    """As Parsl does, with the constants of TaskVine."""
    m.set_category_mode("numbered", number)
    mode = scheduler_state(m, lambda scheduler: scheduler.state.categories["numbered"].mode)
    assert mode == name


@pytest.mark.parametrize("number", [-1, len(MODES)])
def test_unknown_mode_number_is_refused(m, number):
    with pytest.raises(ValueError, match=f"no category mode {number}.*0 for fixed, 1 for max"):
        m.set_category_mode("numbered", number)


def category(m, name):
    return scheduler_state(m, lambda scheduler: scheduler.state.categories[name])


def test_default_category_has_bounds(local_cluster):
    """Tasks without a category get the maximum, and at least the minimum; objects count as dicts."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, "--cores", "4", "--memory", "1000")
    m.set_resources_max(SimpleNamespace(cores=2, memory=200, disk=-1, gpus=-1))
    m.submit(Task("echo $CORES $MEMORY"))
    assert m.wait(PATIENCE_S).output == "2 200\n"
    m.set_resources_min({"memory": 300})
    m.submit(Task("echo $CORES $MEMORY"))
    assert m.wait(PATIENCE_S).output == "2 300\n"


def test_first_guess_is_what_tasks_start_with(m, run):
    m.set_category_mode("guessed", "max")
    m.set_category_first_allocation_guess("guessed", {"cores": 1, "memory": 100})
    assert run(Task("echo $CORES $MEMORY", category="guessed")).output == "1 100\n"


def test_category_runs_one_task_at_once(m, run, shared_cluster):
    """The second task of the category sees that the first one is over, and another category does not wait."""
    folder = shared_cluster.folder
    m.set_category_max_concurrent("single", 1)
    command = f"mkdir {folder}/busy || exit 1; sleep 0.1; rmdir {folder}/busy"
    tasks = run(*(Task(command, category="single", cores=1) for _ in range(4)))
    assert [task.exit_code for task in tasks] == [0, 0, 0, 0]
    m.set_category_max_concurrent("single", 0)
    held = Task("true", category="single", cores=1)
    m.submit(held)
    assert run(Task("echo other", cores=1)).output == "other\n"
    m.set_category_max_concurrent("single", -1)
    assert m.wait(PATIENCE_S) is held


def test_resource_is_not_learned(m):
    m.set_category_autolabel_resource("labelled", "memory", False)
    assert category(m, "labelled").unlearned == {"memory"}
    m.set_category_autolabel_resource("labelled", "memory", True)
    assert category(m, "labelled").unlearned == frozenset()
    with pytest.raises(ValueError, match="use one of cores, memory, disk"):
        m.set_category_autolabel_resource("labelled", "gpus", True)


def test_categories_start_from_summaries(m, run, tmp_path):
    """Objects one after another, in a list, with units and without."""
    one = {
        "category": "known",
        "wall_time": [9, "s"],
        "cores": [1, "cores"],
        "memory": [0.24, "GB"],
        "disk": 40,
    }
    path = tmp_path / "summaries.json"
    path.write_text("\n".join([json.dumps(one)] * 24) + json.dumps([one, {**one, "category": None}]))
    m.set_category_mode("known", "max")
    m.initialize_categories(path, {"cores": 3, "memory": 1000})
    assert run(Task("echo $CORES $MEMORY $DISK", category="known")).output == "1 250 250\n"
    assert category(m, "default").recorded >= 1
    m.set_resources_max({})


@pytest.mark.parametrize("text", ["{", "[1]", '{"memory": [1, "miles"]}', '{"memory": "much"}'])
def test_file_without_summaries_is_refused(m, tmp_path, text):
    path = tmp_path / "summaries.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"summaries\.json"):
        m.initialize_categories(path, {"cores": 1})
