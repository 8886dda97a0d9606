"""Python's own tests of executors, where this Python has its package of tests (3.13 and newer have these modules)."""

from __future__ import annotations

import time

import pytest

from vinecore.futures import FuturesExecutor

executor_tests = pytest.importorskip("test.test_concurrent_futures.executor")
wait_tests = pytest.importorskip("test.test_concurrent_futures.test_wait")
completed_tests = pytest.importorskip("test.test_concurrent_futures.test_as_completed")
util = pytest.importorskip("test.test_concurrent_futures.util")


class VineTestCase(util.BaseTestCase):
    worker_count = 4

    @pytest.fixture(autouse=True)
    def _use_manager(self, m):
        self.manager = m

    def setUp(self):
        super().setUp()
        self.t1 = time.monotonic()
        self.executor = FuturesExecutor(manager=self.manager, factory=False)

    def tearDown(self):
        self.executor.shutdown(wait=True)
        self.executor = None
        super().tearDown()

    def executor_type(self, max_workers=None):
        return FuturesExecutor(manager=self.manager, factory=False)


class TestExecutor(VineTestCase, executor_tests.ExecutorTest):
    # it is about a parameter that this executor does not have
    test_max_workers_negative = None


class TestWait(VineTestCase, wait_tests.WaitTests):
    pass


class TestAsCompleted(VineTestCase, completed_tests.AsCompletedTests):
    pass
