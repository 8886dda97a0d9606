"""The folders of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
