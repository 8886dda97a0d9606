"""A view of a folder, with more files in it: what a call does there is done in the folder."""

from __future__ import annotations

import os

import pytest
from vineworker.library.folder_view import FolderView


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "home" / "analysis"
    folder.mkdir(parents=True)
    (folder / "cuts").write_text("1")
    (folder / "both").write_text("the program's")
    (folder / "data").mkdir()
    (folder / "data" / "a").write_text("a")
    (tmp_path / "home" / "beside").write_text("beside")
    return folder


@pytest.fixture
def view(folder, tmp_path):
    own = tmp_path / "own"
    (own / "data").mkdir(parents=True)
    (own / "extra").write_text("extra")
    (own / "both").write_text("extra")
    (own / "data" / "b").write_text("b")
    view = FolderView(str(folder), str(own), str(own / ".vine-view"))
    yield view
    view.close()
    assert not (own / ".vine-view").exists()


@pytest.fixture
def here(view, monkeypatch):
    monkeypatch.chdir(view.path)


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text, mode="w"):
    with open(path, mode) as file:
        file.write(text)


@pytest.mark.usefixtures("here")
def test_both_folders_are_searched_given_first():
    """Both are found and what came along goes first."""
    assert sorted(os.listdir(".")) == ["both", "cuts", "data", "extra"]
    assert [read("cuts"), read("extra"), read("both"), read("data/a"), read("data/b")] == [
        "1",
        "extra",
        "extra",
        "a",
        "b",
    ]
    assert read("../beside") == read("../analysis/../beside") == "beside"


@pytest.mark.usefixtures("here")
def test_what_is_written_is_in_the_folder(view, folder):
    write("cuts", "2", "a")
    write("new", "new")
    write("data/c", "c")
    os.makedirs("plots/png")
    write("plots/png/1", "1")
    os.symlink("cuts", "link")
    assert (folder / "cuts").read_text() == "12"
    view.apply_changes()
    assert [read(folder / name) for name in ("new", "data/c", "plots/png/1", "link")] == [
        "new",
        "c",
        "1",
        "12",
    ]
    assert not (folder / "extra").exists()
    assert (folder / "both").read_text() == "the program's"
    view.refresh()
    write("plots/png/2", "2")
    assert (folder / "plots" / "png" / "2").read_text() == "2"


@pytest.mark.usefixtures("here")
def test_replaced_renamed_and_deleted_reach_folder(view, folder):
    """What is replaced renamed and deleted is so in the folder."""
    write("part", "2")
    os.replace("part", "cuts")
    view.apply_changes()
    assert (folder / "cuts").read_text() == "2"
    view.refresh()
    os.rename("cuts", "cuts.old")
    view.apply_changes()
    assert sorted(os.listdir(folder)) == ["both", "cuts.old", "data"]
    view.refresh()
    os.remove("cuts.old")
    view.apply_changes()
    assert sorted(os.listdir(folder)) == ["both", "data"]
    view.refresh()
    assert sorted(os.listdir(".")) == ["both", "data", "extra"]


@pytest.mark.usefixtures("here")
def test_given_files_can_be_deleted(view, folder):
    """What came along can be deleted without harm."""
    os.remove("extra")
    os.remove("both")
    view.apply_changes()
    assert (folder / "both").read_text() == "the program's"


@pytest.mark.usefixtures("here")
def test_external_deletion_between_calls_is_tolerated(view, folder):
    """What others clean up between two calls is not deleted."""
    view.apply_changes()
    os.remove("cuts")
    view.refresh()
    view.apply_changes()
    assert (folder / "cuts").exists()


@pytest.mark.usefixtures("here")
def test_external_changes_during_call_are_seen(view, folder):
    """What others make and delete meanwhile is seen."""
    (folder / "theirs").write_text("theirs")
    (folder / "cuts").unlink()
    view.refresh()
    assert read("theirs") == "theirs"
    assert not os.path.lexists("cuts")
    view.apply_changes()
    assert sorted(os.listdir(folder)) == ["both", "data", "theirs"]


def test_views_of_one_folder_are_independent(folder, tmp_path):
    """Two views of one folder do not harm each other."""
    views = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        views.append(FolderView(str(folder), str(tmp_path / name), str(tmp_path / name / ".vine-view")))
    for number, view in enumerate(views):
        os.makedirs(f"{view.path}/plots")
        write(f"{view.path}/plots/{number}", str(number))
        write(f"{view.path}/new{number}", str(number))
    for view in views:
        view.apply_changes()
    for view in views:
        view.refresh()
        assert sorted(os.listdir(view.path)) == ["both", "cuts", "data", "new0", "new1", "plots"]
    assert sorted(os.listdir(folder / "plots")) == ["0", "1"]
