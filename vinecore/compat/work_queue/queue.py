"""A queue of Work Queue: a manager of this project under Work Queue's names."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.compat.work_queue import constants as wq
from vinecore.compat.work_queue import debug_log
from vinecore.compat.work_queue.statistics import NAMES, QueueStatistics
from vinecore.compat.work_queue.tasks import QueueTask, schedule_name
from vinecore.factory import Factory
from vinecore.manager.files import File
from vinecore.manager.manager import Manager

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("vinecore")

STATISTICS_INTERVAL_S = 1.0


class WorkQueue:
    """Runs tasks on the workers that connect to it.

    Parameters
    ----------
    port : int or (int, int)
        The port; -1 or 0 for any free port, a pair for a range.
    name : str or None
        The project name by which workers find the queue.
    shutdown : bool
        Whether workers exit when the queue ends.
    stats_log : str or None
        A file for statistics, one line for each second in which the program uses the queue.
    transactions_log : str or None
        Accepted; a record of tasks and workers is the journal of `vinecore.Manager`.
    debug_log : str or None
        A file for the messages of the engine.
    ssl : bool or (path, path) or None
        As for `vinecore.Manager`.
    status_display_interval : int or None
        Accepted; ``vine_status`` shows the state of a queue.
    """

    def __init__(
        self,
        port: int | Sequence[int] = wq.WORK_QUEUE_DEFAULT_PORT,
        name: str | None = None,
        shutdown: bool = False,
        stats_log: str | Path | None = None,
        transactions_log: str | Path | None = None,
        debug_log: str | Path | None = None,
        ssl: bool | Sequence[str | Path] | None = None,
        status_display_interval: int | None = None,
    ) -> None:
        port = wq.WORK_QUEUE_RANDOM_PORT if port == -1 else port
        self.manager = Manager(port, name, shutdown, ssl=ssl or False)
        self._tasks: dict[int, QueueTask] = {}
        self._declared: dict[tuple[Any, ...], File] = {}
        self._statistics_log: Path | None = None
        self._logged_at = 0.0
        self._debug_log: str | None = None
        if debug_log is not None:
            self._open_debug_log(str(debug_log))
        if stats_log is not None:
            self.specify_log(stats_log)
        if transactions_log is not None:
            self.specify_transactions_log(transactions_log)
        if status_display_interval:
            log.info("status_display_interval has no effect: vine_status shows the state of a queue")

    def _open_debug_log(self, path: str) -> None:
        debug_log.cctools_debug_flags_set("all")
        debug_log.cctools_debug_config_file(path)
        self._debug_log = path

    # ---- properties

    @property
    def name(self) -> str:
        """The project name."""
        return self.manager.name

    @property
    def port(self) -> int:
        """The port to which workers connect."""
        return self.manager.port

    @property
    def stats(self) -> QueueStatistics:
        """The state of the queue in numbers."""
        return QueueStatistics(self.manager.stats)

    @property
    def stats_hierarchy(self) -> QueueStatistics:
        """The state of the queue in numbers; workers have no foremen here, so it is that of `stats`."""
        return self.stats

    def stats_category(self, category: str) -> QueueStatistics:
        """Return the numbers of one category."""
        return QueueStatistics(self.manager.stats_category(category))

    # ---- tasks

    def submit(self, task: QueueTask) -> int:
        """Submit a task; return its number."""
        if not isinstance(task, QueueTask):
            msg = f"cannot submit {task!r}: use a Task or a PythonTask of work_queue"
            raise TypeError(msg)
        number = self.manager.submit(task.make_run(self.manager, self._declared))
        self._tasks[number] = task
        self._log_statistics()
        return number

    def wait(self, timeout: float | None = wq.WORK_QUEUE_WAITFORTASK) -> Any:
        """Wait for the next task that ends; return None if none has ended in time."""
        self._log_statistics()
        return self._take(self.manager.wait(_seconds(timeout)))

    def wait_for_tag(self, tag: str | None, timeout: float | None = wq.WORK_QUEUE_WAITFORTASK) -> Any:
        """Wait for the next task with a tag that ends."""
        if tag is None:
            return self.wait(timeout)
        return self._take(self.manager.wait_for_tag(str(tag), _seconds(timeout)))

    def wait_for_task_id(self, task_id: int, timeout: float | None = wq.WORK_QUEUE_WAITFORTASK) -> Any:
        """Wait for the end of a task."""
        return self._take(self.manager.wait_for_task_id(task_id, _seconds(timeout)))

    def _take(self, run: Any) -> QueueTask | None:
        if run is None:
            return None
        task = self._tasks.pop(run.id)
        task.write_summary()
        return task

    def empty(self) -> bool:
        """Return whether every task has come back."""
        return self.manager.empty()

    def hungry(self) -> int:
        """Return how many further tasks the queue could use now."""
        return self.manager.hungry()

    def task_state(self, taskid: int) -> int:
        """Return the state of a task, such as WORK_QUEUE_TASK_READY."""
        task = self._tasks.get(taskid)
        if task is None:
            return wq.WORK_QUEUE_TASK_UNKNOWN
        # all states before the end look alike from here
        return wq.WORK_QUEUE_TASK_RETRIEVED if task.is_over else wq.WORK_QUEUE_TASK_READY

    def cancel_by_taskid(self, id: int) -> QueueTask | None:  # noqa: A002 - Work Queue's name
        """Cancel a task and take it back; None if there is none, or it has ended."""
        if not self.manager.cancel_by_task_id(id):
            return None
        return self._take(self.manager.wait_for_task_id(id))

    def cancel_by_tasktag(self, tag: str) -> QueueTask | None:
        """Cancel one of the tasks with a tag and take it back; None if there is none."""
        found = (
            self.cancel_by_taskid(number) for number, task in list(self._tasks.items()) if task.tag == tag
        )
        return next((task for task in found if task is not None), None)

    def cancel_by_category(self, category: str) -> list[QueueTask]:
        """Cancel all tasks of a category and take them back."""
        return self._cancel([number for number, task in self._tasks.items() if task.category == category])

    def cancel_all(self) -> list[QueueTask]:
        """Cancel all tasks and take them back."""
        return self._cancel(list(self._tasks))

    def _cancel(self, numbers: list[int]) -> list[QueueTask]:
        found = [self.cancel_by_taskid(number) for number in numbers]
        return [task for task in found if task is not None]

    cancel_all_tasks = cancel_all

    # ---- settings

    def tune(self, name: str, value: float) -> int:
        """Set a parameter of the scheduler; return -1 for an unknown name."""
        return self.manager.tune(name, value)

    def activate_fast_abort(self, multiplier: float) -> int:
        """Disconnect workers whose tasks take so many times the average; 0 or less: none."""
        return self.manager.activate_fast_abort(multiplier)

    def activate_fast_abort_category(self, name: str, multiplier: float) -> int:
        """Disconnect workers whose tasks of a category take so many times the average."""
        return self.manager.activate_fast_abort_category(name, multiplier)

    def specify_draining_by_hostname(self, hostname: str, drain_mode: bool = True) -> int:
        """Send no more tasks to the workers of a host."""
        return int(self.manager.set_draining_by_hostname(hostname, drain_mode))

    def specify_algorithm(self, algorithm: int) -> None:
        """Set how workers are chosen, such as WORK_QUEUE_SCHEDULE_FILES."""
        self.manager.set_scheduler(schedule_name(algorithm) or "files")

    def specify_task_order(self, order: int) -> None:
        """Set which of equal tasks starts first: the first that was submitted, here always."""
        if order != wq.WORK_QUEUE_TASK_ORDER_FIFO:
            log.warning("specify_task_order has no effect: give the tasks that shall start first a priority")

    def specify_name(self, name: str) -> None:
        """Set the project name."""
        self.manager.set_name(name)

    def specify_priority(self, priority: float) -> None:
        """Set the priority that the queue reports to the catalog."""
        self.manager.set_priority(int(priority))

    def specify_num_tasks_left(self, ntasks: int) -> None:
        """Set the number of tasks that are still to be submitted, for factories."""
        self.manager.tasks_left_count(ntasks)

    def specify_manager_mode(self, mode: int) -> None:
        """Accept the mode: a queue with a name is announced, another is not."""
        log.debug("specify_manager_mode(%r) has no effect: the name decides", mode)

    specify_master_mode = specify_manager_mode

    def specify_catalog_server(self, hostname: str, port: int) -> None:
        """Set the catalog server."""
        self.manager.set_catalog_servers(f"{hostname}:{port}")

    def specify_catalog_servers(self, servers: str) -> None:
        """Set the catalog servers, as HOST:PORT with commas between them."""
        self.manager.set_catalog_servers(servers)

    def specify_manager_preferred_connection(self, mode: str) -> None:
        """Set under which of its addresses workers connect: by_ip, by_hostname or by_apparent_ip."""
        self.manager.set_manager_preferred_connection(mode)

    specify_master_preferred_connection = specify_manager_preferred_connection

    def specify_min_taskid(self, minid: int) -> int:
        """Set the least number of further tasks."""
        return self.manager.set_min_task_id(minid)

    def specify_password(self, password: str) -> None:
        """Set the secret that workers have to prove."""
        self.manager.set_password(password)

    def specify_password_file(self, file: str | Path) -> bool:
        """Set the file with the secret that workers have to prove; return whether it could be read."""
        try:
            self.manager.set_password_file(file)
        except (OSError, ValueError) as error:
            log.warning("specify_password_file(%r): %s", file, error)
            return False
        return True

    def specify_keepalive_interval(self, interval: float) -> None:
        """Set how often a silent worker is asked whether it is there, in seconds."""
        self.manager.set_keepalive_interval(interval)

    def specify_keepalive_timeout(self, timeout: float) -> None:
        """Set after how long without an answer a worker counts as lost, in seconds."""
        self.manager.set_keepalive_timeout(timeout)

    def specify_log(self, logfile: str | Path) -> bool:
        """Write statistics to a file from now on."""
        self._statistics_log = Path(validators.path("logfile", logfile)).absolute()
        self._statistics_log.write_text(f"# timestamp {' '.join(NAMES)}\n")
        self._log_statistics()
        return True

    def specify_transactions_log(self, logfile: str | Path) -> bool:
        """Accept a file for transactions, and say where the record of a run is."""
        log.warning(
            "the transactions log %s is not written: a record of tasks and workers is written with VINE_RUN_INFO_PATH=FOLDER in the environment",
            validators.path("logfile", logfile),
        )
        return False

    def specify_debug_log(self, logfile: str | Path) -> None:
        """Write the messages of the engine to a file."""
        self._open_debug_log(str(logfile))

    def specify_max_resources(self, rmd: Mapping[str, float]) -> None:
        """Set the maximum resources of tasks of the default category."""
        self.specify_category_max_resources("default", rmd)

    def specify_min_resources(self, rmd: Mapping[str, float]) -> None:
        """Set the minimum resources of tasks of the default category."""
        self.specify_category_min_resources("default", rmd)

    def specify_category_max_resources(self, category: str, rmd: Mapping[str, float]) -> None:
        """Set the maximum resources of tasks of a category."""
        self.manager.set_category_resources_max(category, dict(rmd))

    def specify_category_min_resources(self, category: str, rmd: Mapping[str, float]) -> None:
        """Set the minimum resources of tasks of a category."""
        self.manager.set_category_resources_min(category, dict(rmd))

    def specify_category_first_allocation_guess(self, category: str, rmd: Mapping[str, float]) -> None:
        """Set the resources that the first tasks of a category get."""
        self.manager.set_category_first_allocation_guess(category, dict(rmd))

    def specify_max_category_concurrent(self, category: str, max_concurrent: int) -> None:
        """Set how many tasks of a category run at once; -1 for no limit."""
        self.manager.set_category_max_concurrent(category, max_concurrent)

    specify_category_max_concurrent = specify_max_category_concurrent

    def specify_category_mode(self, category: str, mode: int) -> None:
        """Set how a category learns the resources of its tasks."""
        self.manager.set_category_mode(category, mode)

    def specify_category_autolabel_resource(self, category: str, resource: str, autolabel: bool) -> bool:
        """Set whether a category learns one resource of its tasks."""
        self.manager.set_category_autolabel_resource(category, resource, autolabel)
        return True

    def initialize_categories(self, filename: str, rm: Mapping[str, float]) -> None:
        """Set categories from a file with measured resources."""
        self.manager.initialize_categories(filename, dict(rm))

    def enable_monitoring(self, dirname: str | None = None, watchdog: bool = True) -> int:
        """Set whether tasks are ended that exceed their resources; they are measured in any case."""
        del dirname
        self.manager.enable_monitoring(watchdog)
        return 1

    def enable_monitoring_full(self, dirname: str | None = None, watchdog: bool = True) -> int:
        """Do as `enable_monitoring`: only the highest usage of a task is recorded."""
        return self.enable_monitoring(dirname, watchdog)

    # ---- workers

    def shutdown_workers(self, n: int = 0) -> int:
        """Let idle workers exit; 0 for all."""
        return self.manager.workers_shutdown(n)

    def block_host(self, host: str) -> None:
        """Send no tasks to a host."""
        self.manager.block_host(host)

    blacklist = block_host

    def block_host_with_timeout(self, host: str, timeout: float) -> None:
        """Send no tasks to a host for so many seconds."""
        self.manager.block_host_with_timeout(host, timeout)

    blacklist_with_timeout = block_host_with_timeout

    def unblock_host(self, host: str | None = None) -> None:
        """Send tasks to a host again; None for all."""
        self.manager.unblock_host(host)

    blacklist_clear = unblock_host

    def invalidate_cache_file(self, local_name: str) -> None:
        """Forget a file that workers keep, because it has changed."""
        path = os.path.abspath(local_name)
        for key in [key for key in self._declared if key[:2] == ("file", path)]:
            self.manager.undeclare_file(self._declared.pop(key))

    # ---- end

    def _log_statistics(self) -> None:
        now = time.monotonic()
        if self._statistics_log is None or now - self._logged_at < STATISTICS_INTERVAL_S:
            return
        self._logged_at = now
        stats = self.stats
        numbers = [int(time.time() * 1e6), *(getattr(stats, name) for name in NAMES)]
        with self._statistics_log.open("a") as file:
            print(*numbers, file=file)

    def close(self) -> None:
        """Cancel unfinished tasks and release the workers."""
        self.manager.close()
        if self._debug_log is not None:
            debug_log.close_debug_file(self._debug_log)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class QueueFactory(Factory):
    """Keeps workers running for a queue.

    Parameters
    ----------
    batch_type : str
        Where workers run, such as "local" or "condor".
    manager_name : str or None
        The project name of the queue.
    manager_host_port : str or None
        Its address, as HOST:PORT, instead.
    factory_binary, worker_binary, log_file : str or None
        Accepted; a factory is a thread of this program, and brings its own worker.
    """

    def __init__(
        self,
        batch_type: str,
        manager_name: str | None = None,
        manager_host_port: str | None = None,
        factory_binary: str | None = None,
        worker_binary: str | None = None,
        log_file: str | None = None,
        **settings: Any,
    ) -> None:
        del factory_binary, worker_binary, log_file
        super().__init__(
            batch_type, manager_name=manager_name, manager_host_port=manager_host_port, **settings
        )


def _seconds(timeout: float | None) -> float | None:
    """Return a time to wait, without limit for WORK_QUEUE_WAITFORTASK."""
    return None if timeout is None or timeout < 0 else timeout
