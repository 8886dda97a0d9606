"""Whose a module is: the environment's, or the user's own."""

from __future__ import annotations

import importlib
import os
import sys
import types

import pytest

from vinecore.protocol import user_modules


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of the user's, on the path of imports; what was imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def place(folder, name, text=""):
    path = folder.joinpath(*name.split("/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    importlib.invalidate_caches()
    return path


@pytest.mark.parametrize("name", ["json", "json.decoder", "sys", "math", "zipimport", "pytest", "cloudpickle", "_pytest.tmpdir"])  # fmt: skip
def test_library_and_packages_belong_to_environment(name):
    """The standard library and installed packages are of the environment."""
    assert user_modules.is_package_module(name)


@pytest.mark.parametrize("name", ["__main__", "tests.harness.sample_tasks", "a_module_that_there_is_not"])
def test_program_and_unfound_modules_do_not(name):
    """The program and what is nowhere are not."""
    assert not user_modules.is_package_module(name)


def test_project_modules_are_never_users():
    """This project is never the users wherever it is installed."""
    assert user_modules.is_package_module("vinecore.manager.files")
    assert not user_modules.is_own_module(user_modules)


def test_user_module_is_found_without_import(folder):
    """A module of the user is told without importing it."""
    place(folder, "mine_once.py", "raise RuntimeError")
    place(folder, "mine_all/__init__.py", "raise RuntimeError")
    place(folder, "mine_all/inner.py", "raise RuntimeError")
    for name in ("mine_once", "mine_all", "mine_all.inner"):
        assert not user_modules.is_package_module(name)
    assert not {"mine_once", "mine_all"} & set(sys.modules)


def test_user_module_with_package_name_counts(folder):
    """A module of the user that has the name of a package is the users."""
    own = types.ModuleType("colorsys")
    own.__file__ = str(place(folder, "colorsys.py"))
    assert user_modules.is_own_module(own)
    assert not user_modules.is_own_module(importlib.import_module("json"))


def test_namespace_package_needs_all_folders_installed(folder, monkeypatch):
    """A package in several folders is of the environment if all of them are."""
    place(folder, "lib/site-packages/spread_out/one.py")
    monkeypatch.syspath_prepend(str(folder / "lib/site-packages"))
    assert user_modules.is_package_module("spread_out.one")
    place(folder, "spread_out/two.py")
    importlib.invalidate_caches()
    assert not user_modules.is_package_module("spread_out.one")


def test_other_environments_files_are_packages(folder):
    """Files of environments in other places are packages."""
    assert user_modules.is_package_file(str(folder / "env/lib/python3.9/site-packages/numpy/__init__.py"))
    assert user_modules.is_package_file("/usr/lib/python3/dist-packages/six.py")
    assert user_modules.is_package_file(os.__file__)
    assert not user_modules.is_package_file(str(folder / "my-site-packages/analysis.py"))


def test_what_has_no_file_is_nobodys_own():
    assert not user_modules.is_own_module(types.ModuleType("made_by_hand"))
    assert not user_modules.is_own_module(sys.modules["__main__"])


def test_digest_of_own_modules_follows_text(folder):
    """The digest of own modules is that of their text."""
    path = place(folder, "mine_text.py", "CUT = 1")
    own = [importlib.import_module("mine_text"), importlib.import_module("json")]
    first = user_modules.digest_own_modules(own)
    assert first == user_modules.digest_own_modules(own) != ""
    when = path.stat()
    path.write_text("CUT = 2")  # as long as before, and at the same time
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert user_modules.digest_own_modules(own) != first
    path.write_text("CUT = 1")
    assert user_modules.digest_own_modules(own) == first
    path.unlink()
    assert user_modules.digest_own_modules(own) not in ("", first)
    assert user_modules.digest_own_modules([sys.modules["json"]]) == ""


def test_reimports_of_user_modules_are_counted(folder):
    """It is counted how often a module of the user is imported again."""
    place(folder, "mine_loads.py", "VALUE = 1")
    module = importlib.import_module("mine_loads")
    assert ("mine_loads", 0) in user_modules.count_loads()
    assert ("mine_loads", 0) in user_modules.count_loads()
    importlib.reload(module)
    assert ("mine_loads", 1) in user_modules.count_loads()
    del sys.modules["mine_loads"]
    importlib.import_module("mine_loads")
    assert ("mine_loads", 2) in user_modules.count_loads()
    assert not {"json", "vinecore"} & dict(user_modules.count_loads()).keys()


def test_own_modules_are_current(folder):
    """Own modules are those that there are at each moment."""

    def found():
        return {
            module.__name__
            for module in user_modules.find_own_modules()
            if module.__name__.startswith("mine_")
        }

    assert found() == set()
    place(folder, "mine_first.py")
    place(folder, "mine_second.py")
    importlib.import_module("mine_first")
    assert found() == {"mine_first"}
    importlib.import_module("mine_second")
    del sys.modules["mine_first"]  # as many as before
    assert found() == {"mine_second"}
    sys.modules["mine_second"] = types.ModuleType("mine_second")  # as many, with the same names
    assert found() == set()
    sys.modules["mine_second"].__file__ = str(folder / "mine_second.py")
    assert found() == {"mine_second"}


def test_module_reimported_from_elsewhere_is_users(folder, monkeypatch):
    """A module of a package that is imported again from elsewhere is the users own."""
    place(folder, "lib/site-packages/mine_moved.py")
    monkeypatch.syspath_prepend(str(folder / "lib/site-packages"))
    module = importlib.import_module("mine_moved")
    assert module not in user_modules.find_own_modules()
    place(folder, "mine_moved.py")
    monkeypatch.syspath_prepend(str(folder))
    importlib.reload(module)
    assert module in user_modules.find_own_modules()
