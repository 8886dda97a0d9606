"""The numbers and texts that programs written for TaskVine compare with."""

from __future__ import annotations

import json
import pickle

import pytest

from vinecore import constants
from vinecore.cache_level import parse_cache_level
from vinecore.constants import TASK_RESULTS, ResultCode, TaskResult

NUMBERS = {
    "DEFAULT_PORT": 9123, "RANDOM_PORT": 0, "WAIT_FOREVER": -1,
    "RESULT_SUCCESS": 0, "RESULT_INPUT_MISSING": 1, "RESULT_OUTPUT_MISSING": 2, "RESULT_STDOUT_MISSING": 4, "RESULT_SIGNAL": 8,
    "RESULT_RESOURCE_EXHAUSTION": 16, "RESULT_MAX_END_TIME": 24, "RESULT_UNKNOWN": 32, "RESULT_FORSAKEN": 40, "RESULT_MAX_RETRIES": 48,
    "RESULT_MAX_WALL_TIME": 56, "RESULT_RMONITOR_ERROR": 64, "RESULT_OUTPUT_TRANSFER_ERROR": 72, "RESULT_FIXED_LOCATION_MISSING": 80,
    "RESULT_CANCELLED": 88, "RESULT_LIBRARY_EXIT": 96, "RESULT_SANDBOX_EXHAUSTION": 104, "RESULT_MISSING_LIBRARY": 112,
    "ALLOCATION_MODE_FIXED": 0, "ALLOCATION_MODE_MAX": 1, "ALLOCATION_MODE_MIN_WASTE": 2, "ALLOCATION_MODE_MAX_THROUGHPUT": 3,
    "ALLOCATION_MODE_GREEDY_BUCKETING": 4, "ALLOCATION_MODE_EXHAUSTIVE_BUCKETING": 5, "ALLOCATION_MODE_DET_GREEDY_BUCKETING": 6,
    "ALLOCATION_MODE_DET_EXHAUSTIVE_BUCKETING": 7, "ALLOCATION_MODE_QUANTIZED_BUCKETING": 8,
    "CACHE_LEVEL_TASK": 0, "CACHE_LEVEL_WORKFLOW": 1, "CACHE_LEVEL_WORKER": 2, "CACHE_LEVEL_FOREVER": 3,
    "SCHEDULE_UNSET": 0, "SCHEDULE_FCFS": 1, "SCHEDULE_FILES": 2, "SCHEDULE_TIME": 3, "SCHEDULE_RAND": 4, "SCHEDULE_WORST": 5,
    "SCHEDULE_DISK": 6,
    "TRANSFER_ALWAYS": 0, "FIXED_LOCATION": 1, "WATCH": 2, "FAILURE_ONLY": 4, "SUCCESS_ONLY": 8, "RETRACT_ON_RESET": 16,
    "MOUNT_SYMLINK": 32, "MOUNT_MKDIR": 64, "PEER_SHARE": 0, "PEER_NOSHARE": 1, "UNLINK_WHEN_DONE": 2,
    "FILE": 1, "URL": 2, "TEMP": 3, "BUFFER": 4, "MINI_TASK": 5,
}  # fmt: skip
TEXTS = (
    "success", "input missing", "output missing", "stdout missing", "signal", "resource exhaustion", "max end time", "unknown",
    "forsaken", "max retries", "max wall time", "rmonitor error", "output transfer error", "fixed location missing", "cancelled",
    "library exit", "sandbox exhaustion", "missing library",
)  # fmt: skip


def test_constants_have_their_numbers():
    found = {name[5:]: value for name, value in vars(constants).items() if name.startswith("VINE_")}
    assert found == NUMBERS
    assert all(isinstance(value, int) for value in found.values())


def test_results_have_the_documented_texts():
    assert tuple(TASK_RESULTS) == TEXTS
    assert len(TEXTS) == len(ResultCode)


@pytest.mark.parametrize("text", TEXTS)
def test_result_equals_text_and_constant(text):
    result = TASK_RESULTS[text]
    number = NUMBERS[f"RESULT_{text.upper().replace(' ', '_')}"]
    constant = getattr(constants, f"VINE_RESULT_{text.upper().replace(' ', '_')}")
    assert result == text
    assert result == number == int(result)
    assert result == constant
    assert constant == result
    assert result not in [other for other in TEXTS if other != text]
    assert result not in [other for other in ResultCode if other != constant]
    assert (result != number) is False
    assert {text: 1}[result] == 1
    assert f"{result}" == text


def test_result_is_no_truth_value():
    """Zero means success, and it is no False."""
    assert TASK_RESULTS["success"]
    assert (TASK_RESULTS["success"] == False) is False  # noqa: E712 - the comparison is what is tested
    assert TASK_RESULTS["input missing"] != True  # noqa: E712


def test_result_survives_pickle_and_json():
    again = pickle.loads(pickle.dumps(TASK_RESULTS["forsaken"]))
    assert type(again) is TaskResult
    assert again == constants.VINE_RESULT_FORSAKEN
    assert json.loads(json.dumps({"result": again})) == {"result": "forsaken"}


@pytest.mark.parametrize("level", constants.CacheLevel)
def test_cache_levels_are_accepted(level):
    assert parse_cache_level(level) == parse_cache_level(int(level)) == level.name.lower()
