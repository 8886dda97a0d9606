"""The folders of a run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.harness.processes import PATIENCE_S
from vinecore import Task

NAMES = ("runtime_directory", "logging_directory", "staging_directory", "library_logging_directory",
         "cache_directory")  # fmt: skip


def test_folders_are_in_run_info_path(local_cluster, tmp_path):
    m = local_cluster.start_manager(run_info_path=tmp_path / "runs")
    runtime = Path(m.runtime_directory)
    assert runtime == m.journal.parent
    assert runtime.parent == tmp_path / "runs"
    assert Path(m.logging_directory) == runtime / "vine-logs"
    assert Path(m.library_logging_directory) == runtime / "library-logs"
    assert Path(m.cache_directory) == tmp_path / "runs" / "vine-cache"
    kept = Path(m.logging_directory) / "of-the-application"
    kept.write_text("lines")
    staged = Path(m.staging_directory) / "argument"
    staged.write_text("value")
    m.close()
    assert kept.read_text() == "lines"
    assert not staged.exists()


def test_folders_without_run_info_path_go(local_cluster):
    m = local_cluster.start_manager()
    folders = [getattr(m, name) for name in NAMES]
    assert len(set(folders)) == len(NAMES)
    assert folders == [getattr(m, name) for name in NAMES]
    for folder in folders:
        assert os.path.isabs(folder)
        Path(folder, "file").write_text("content")
    m.close()
    assert not any(map(os.path.exists, folders))


def test_closed_manager_makes_no_folder(local_cluster):
    m = local_cluster.start_manager()
    m.close()
    for name in NAMES:
        with pytest.raises(RuntimeError, match="closed"):
            getattr(m, name)


def test_run_folder_is_named_by_its_template(local_cluster, tmp_path):
    runs = tmp_path / "runs"
    names = []
    for _ in range(2):
        m = local_cluster.start_manager(run_info_path=runs, run_info_template="analysis-%Y")
        names.append(Path(m.runtime_directory).name)
        m.close()
    year = time.strftime("%Y")
    assert names == [f"analysis-{year}", f"analysis-{year}-2"]
    assert os.readlink(runs / "most-recent") == names[1]
    for wrong in ("%Y/%m", "", "..", "most-recent"):
        with pytest.raises(ValueError, match="run_info_template"):
            local_cluster.start_manager(run_info_path=runs, run_info_template=wrong)


def test_staging_is_where_the_user_wants_it(local_cluster, tmp_path):
    m = local_cluster.start_manager(staging_path=tmp_path / "scratch")
    assert Path(m.staging_directory).is_relative_to(tmp_path / "scratch" / "vine-staging")
    local_cluster.start_worker(m)
    task = Task("head -c 3000000 /dev/zero > out", cores=1)
    task.add_output(m.declare_buffer(), "out")
    m.submit(task)
    assert m.wait(PATIENCE_S).successful()
    received = [
        path
        for path in (tmp_path / "scratch").rglob("*")
        if path.is_file() and path.stat().st_size == 3_000_000
    ]
    assert len(received) == 1
    m.close()
    assert list((tmp_path / "scratch" / "vine-staging").iterdir()) == []
