"""What dask expects of any ``get``, in both task modes."""

from __future__ import annotations

import pytest
from dask.utils_test import GetFunctionTestMixin, inc

from tests.conformance.dask_test_plugin import get_under_test


@pytest.fixture(scope="class", autouse=True)
def one_manager(request):
    with get_under_test(request.cls.task_mode) as get:
        request.cls.get = staticmethod(get)
        yield


class TestFunctionCalls(GetFunctionTestMixin):
    task_mode = "function-calls"


class TestTasks(GetFunctionTestMixin):
    task_mode = "tasks"

    def test_get_stack_limit(self):
        # a process for each vertex: the same statement with fewer of them
        chain = {"x0": 0, **{f"x{i + 1}": (inc, f"x{i}") for i in range(50)}}
        assert self.get(chain, "x50") == 50
