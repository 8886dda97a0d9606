from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import numpy as np
import pytest

from daskvine.options import Options, describe, table
from vinecore.manager.files import File

MODES = {"cores": 1, "memory": 2.5, "disk": 0, "gpus": 0}

# What TaskVine documents, but for the two that differ on purpose: task_priority_mode and prune_depth.
DEFAULTS = {
    "environment": None,
    "extra_files": None,
    "worker_transfers": True,
    "env_vars": None,
    "checkpoint_fn": None,
    "resources": None,
    "resources_mode": None,
    "task_mode": "tasks",
    "lib_extra_functions": None,
    "lib_resources": None,
    "lib_command": None,
    "lib_modules": None,
    "task_priority_mode": None,
    "scheduling_mode": "files",
    "retries": None,
    "submit_per_cycle": None,
    "max_pending": None,
    "verbose": False,
    "show_output": True,
    "env_per_task": False,
    "progress_disable": False,
    "progress_label": "[green]tasks",
    "reconstruct": None,
    "merge_size": 2,
    "wrapper": None,
    "wrapper_proc": print,
    "prune_depth": 1,
    "reuse": None,  # which TaskVine does not have
}


def test_defaults():
    options = Options.parse({})
    assert {f.name: getattr(options, f.name) for f in fields(options)} == DEFAULTS
    assert options == Options()


def test_options_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Options().retries = 2


FILE, FUNCTION = File(None, "buffer", "buffer-0"), len

ACCEPTED = [
    ("environment", FILE, FILE),
    ("environment", "env.tar.gz", "env.tar.gz"),
    ("environment", Path("/tmp/env.tar.gz"), "/tmp/env.tar.gz"),
    ("extra_files", {FILE: "sub/calibration.json"}, {FILE: "sub/calibration.json"}),
    ("worker_transfers", False, False),
    ("env_vars", {"A": "1", "B": FUNCTION}, {"A": "1", "B": FUNCTION}),
    ("env_vars", None, None),
    ("checkpoint_fn", FUNCTION, FUNCTION),
    (
        "resources",
        {"cores": 1, "memory": 2.5, "disk": 0, "gpus": 0},
        {"cores": 1, "memory": 3, "disk": 0, "gpus": 0},
    ),
    ("resources", {"cores": np.float64(2), "memory": np.int32(100)}, {"cores": 2, "memory": 100}),
    ("lib_resources", {"slots": np.int64(4)}, {"slots": 4}),
    ("retries", np.int64(2), 2),
    ("verbose", np.True_, True),
    ("extra_files", {FILE: Path("sub") / "a.json"}, {FILE: "sub/a.json"}),
    ("resources_mode", "min_waste", "min waste"),
    ("resources_mode", "min waste", "min waste"),
    ("resources_mode", "Max-Throughput", "max throughput"),
    ("resources_mode", "greedy bucketing", "greedy_bucketing"),
    ("task_mode", "function_calls", "function-calls"),
    ("task_mode", "tasks", "tasks"),
    ("lib_extra_functions", [FUNCTION], (FUNCTION,)),
    ("lib_resources", {"cores": 12, "slots": 12.0}, {"cores": 12, "slots": 12}),
    ("lib_command", "nice", "nice"),
    ("lib_modules", [json, "os.path", json], ("json", "os.path")),
    ("import_modules", (json,), ("json",)),
    ("hoisting_modules", [], ()),
    ("task_priority_mode", "fifo", "FIFO"),
    ("task_priority_mode", "Depth_First", "depth-first"),
    ("task_priority_mode", "largest-input-first", "largest-input-first"),
    ("scheduling_mode", "RAND", "rand"),
    ("retries", 0, 0),
    ("submit_per_cycle", 0, None),
    ("submit_per_cycle", 100, 100),
    ("max_pending", -1, None),
    ("max_pending", 7, 7),
    ("verbose", True, True),
    ("progress_disable", True, True),
    ("progress_label", "fitting", "fitting"),
    ("reconstruct", True, True),
    ("merge_size", 8, 8),
    ("wrapper", FUNCTION, FUNCTION),
    ("wrapper_proc", FUNCTION, FUNCTION),
    ("prune_depth", 0, 0),
    ("reuse", True, True),
    ("reuse", len, len),
]


@pytest.mark.filterwarnings("ignore:.*has no effect")
@pytest.mark.parametrize(("spelling", "given", "canonical"), ACCEPTED)
def test_accepted_values(spelling, given, canonical):
    name = next(row.name for row in table() if spelling in row.spellings)
    value = getattr(Options.parse({spelling: given}), name)
    assert value == canonical
    assert type(value) is type(canonical)


@pytest.mark.parametrize(
    ("name", "given", "error", "words"),
    [
        ("environment", 3, TypeError, "path"),
        ("environment", "", ValueError, "path"),
        ("extra_files", ["a"], TypeError, "dict"),
        ("extra_files", {"a.txt": "a.txt"}, TypeError, "declare_file"),
        ("extra_files", {FILE: "../a"}, ValueError, "inside of a task's folder"),
        ("extra_files", {FILE: "/a"}, ValueError, "inside of a task's folder"),
        ("worker_transfers", 1, TypeError, "True or False"),
        ("worker_transfers", None, TypeError, "True or False"),
        ("env_vars", {"A": 1}, TypeError, "the value of 'A' has a wrong type"),
        ("env_vars", {"A=": "1"}, ValueError, "cannot be an environment variable"),
        ("checkpoint_fn", True, TypeError, "function"),
        ("resources", 4, TypeError, "dict"),
        ("resources", {"core": 4}, ValueError, "did you mean 'cores'?"),
        ("resources", {"slots": 4}, ValueError, "'slots' is not known"),
        ("resources", {3: 4}, ValueError, "3 is not known"),
        ("resources", {"memory": 10**30}, ValueError, "or less"),
        ("lib_resources", {"slots": 1 << 20}, ValueError, "65,536 or less"),
        ("env_vars", {"A": "\udc80"}, ValueError, "cannot be an environment variable"),
        ("lib_command", "nul\0", ValueError, "NUL"),
        ("resources", {"cores": "4"}, TypeError, "cores='4': use a number"),
        ("resources", {"cores": True}, TypeError, "cores=True: use a number"),
        ("resources", {"memory": -1}, ValueError, "0 or more"),
        ("resources", {"memory": math.nan}, ValueError, "finite"),
        ("resources", {"memory": math.inf}, ValueError, "finite"),
        ("resources_mode", "min_wast", ValueError, "did you mean 'min waste'?"),
        ("task_mode", "task", ValueError, "did you mean 'tasks'?"),
        ("task_mode", "zzzz", ValueError, "'tasks' or 'function-calls'"),
        ("task_mode", None, TypeError, "'tasks' or 'function-calls'"),
        ("lib_extra_functions", FUNCTION, TypeError, "list"),
        ("lib_extra_functions", ["f"], TypeError, "list of functions"),
        ("lib_resources", {"slots": 0}, ValueError, "slots=0: use a whole number of 1 or more"),
        ("lib_resources", {"slots": 1.5}, ValueError, "slots=1.5: use a whole number of 1 or more"),
        ("lib_command", ["nice"], TypeError, "text"),
        ("lib_modules", "numpy", TypeError, "list"),
        ("lib_modules", [3], TypeError, "3 is neither"),
        ("import_modules", ["a b"], ValueError, "not the name of a module"),
        ("task_priority_mode", "deep-first", ValueError, "did you mean 'depth-first'?"),
        ("scheduling_mode", "file", ValueError, "did you mean 'files'?"),
        ("retries", -1, ValueError, "0 or more"),
        ("retries", True, TypeError, "0 or more"),
        ("retries", 2.0, TypeError, "0 or more"),
        ("submit_per_cycle", "10", TypeError, "integer"),
        ("verbose", "yes", TypeError, "True or False"),
        ("progress_label", 3, TypeError, "text"),
        ("merge_size", 1, ValueError, "2 or more"),
        ("wrapper", "f", TypeError, "function"),
        ("wrapper_proc", None, TypeError, "function"),
        ("prune_depth", -1, ValueError, "0 or more"),
        ("reuse", 1, TypeError, "function"),
    ],
)
def test_bad_values_name_accepted_and_given(name, given, error, words):
    """Bad values say what is taken and what was given."""
    with pytest.raises(error) as caught:
        Options.parse({name: given})
    text = str(caught.value)
    row = next(row for row in table() if name in row.spellings)
    assert text.startswith(f"get() option {name!r} takes {row.accepts}; got {given!r}")
    assert words in text


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("task_mod", "task_mode"),
        ("lazy_tranfers", "lazy_transfers"),
        ("import_module", "import_modules"),
        ("retry", "retries"),
        ("Progress-Disable", "progress_disable"),
        ("resource", "resources"),
    ],
)
def test_unknown_options_name_the_nearest(given, nearest):
    message = f"get() got an unknown option {given!r}; did you mean {nearest!r}?"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        Options.parse({given: 1})


def test_unknown_options_far_from_all_others():
    with pytest.raises(TypeError, match=r"unknown option 'xyzzy'$"):
        Options.parse({"xyzzy": 1})


@pytest.mark.parametrize(
    ("keyword", "instead"),
    [("num_workers", "DaskVine.local"), ("pool", "workers"), ("priority", "task_priority_mode")],
)
def test_keywords_of_other_schedulers_are_explained(keyword, instead):
    """Keywords of other schedulers say what to use."""
    with pytest.raises(TypeError, match=rf"unknown option '{keyword}': .*{instead}"):
        Options.parse({keyword: 1})


@pytest.mark.parametrize("off", ["worker_transfers", "lazy_transfers", "peer_transfers"])
def test_false_worker_transfers_wins_in_any_spelling(off):
    """False in any spelling of worker transfers wins."""
    spellings = dict.fromkeys(["worker_transfers", "lazy_transfers", "peer_transfers"], True)
    assert Options.parse(spellings).worker_transfers is True
    assert Options.parse({**spellings, off: False}).worker_transfers is False


def test_spellings_of_modules_are_merged():
    given = {"import_modules": [json], "hoisting_modules": ["re", "json"], "lib_modules": ["os"]}
    options = Options.parse({**given, "task_mode": "function-calls"})
    assert options.lib_modules == ("os", "json", "re")


@pytest.mark.parametrize(
    ("mode", "name", "value"),
    [
        ("tasks", "lib_resources", {"cores": 1}),
        ("tasks", "import_modules", [json]),
        ("tasks", "lib_command", "nice"),
        ("tasks", "lib_extra_functions", [FUNCTION]),
        ("function-calls", "resources", {"cores": 1}),
    ],
)
def test_options_of_the_other_task_mode_warn(mode, name, value):
    with pytest.warns(UserWarning, match=rf"'{name}' has no effect with task_mode='{mode}'"):
        options = Options.parse({name: value, "task_mode": mode})
    assert options != Options(task_mode=mode)


def test_option_of_both_modes_is_logged(caplog):
    """What talks set in both modes is said in the log."""
    with caplog.at_level("INFO", logger="daskvine"):
        Options.parse({"resources_mode": "min waste", "task_mode": "function-calls"})
    assert "'resources_mode' has no effect with task_mode='function-calls'" in caplog.text


def test_what_is_not_set_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Options.parse({"lib_resources": None, "import_modules": [], "task_mode": "tasks"})
        Options.parse({"resources": None, "env_per_task": False, "task_mode": "function-calls"})


def test_env_per_task_needs_a_path():
    assert Options.parse({"environment": "env.tar.gz", "env_per_task": True}).env_per_task
    with pytest.raises(ValueError, match="'env_per_task' needs environment to be a path"):
        Options.parse({"env_per_task": True})
    with pytest.raises(ValueError, match="'env_per_task' needs environment to be a path"):
        Options.parse({"environment": FILE, "env_per_task": True})


def test_every_default_passes_its_own_check():
    for row in table():
        assert row.read({row.name: row.default}) == row.default


def test_no_spelling_means_two_things():
    spellings = [spelling for row in table() for spelling in row.spellings]
    assert len(spellings) == len(set(spellings))


def test_description_has_line_per_option():
    """The description has a line for each option."""
    lines = describe().splitlines()
    assert len(lines) == 2 + len(DEFAULTS)
    assert all(line.count(" | ") == 3 for line in lines)
    assert all(any(f"`{row.name}`" in line for line in lines) for row in table())
    assert "<br>`peer_transfers`" in describe()
