"""Environments that `ndcctools.poncho.package_create` makes run tasks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cloudpickle
import pytest

from tests.harness.processes import PATIENCE_S, wait_for_task
from vinecore import PythonTask, Task
from vinecore.compat import package_create
from vinecore.compat.package_create import create_conda_spec


def make_wheel(folder, name, files):
    """Make a wheel of these files."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, text in files.items():
            wheel.writestr(inside, text)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/entry_points.txt", f"[console_scripts]\nsay_{name} = {name}:say\n")
        wheel.writestr(f"{info}/RECORD", "")
    return str(path)


@pytest.fixture
def wheels(tmp_path):
    """What tasks need in an environment: cloudpickle, and a package of the user."""
    source = Path(cloudpickle.__file__).parent
    return [
        make_wheel(tmp_path, "cloudpickle", {f"cloudpickle/{p.name}": p.read_text() for p in source.glob("*.py")}),
        make_wheel(tmp_path, "mine", {"mine.py": "ANSWER = 42\ndef say(): print('said', ANSWER)\n"}),
    ]  # fmt: skip


def make_use():
    """Return a function that workers without this module can load."""

    def use():
        import sys

        import mine

        return mine.ANSWER, sys.prefix, mine.__file__

    return use


def test_specification_becomes_an_environment(local_cluster, wheels, tmp_path, monkeypatch):
    """Without conda: a venv, packed with its Python; a command of a package starts with that."""
    monkeypatch.setattr(package_create, "find_conda", str)
    monkeypatch.chdir(tmp_path)
    spec = {"conda": {"channels": ["conda-forge"], "packages": ["python", "conda-pack"]}, "pip": wheels}
    archive = package_create.dict_to_env(spec, cache=True)
    before = os.stat(archive)
    assert package_create.dict_to_env(spec, cache=True) == archive
    assert os.stat(archive) == before
    m = local_cluster.start_manager()
    local_cluster.start_worker(m)
    environment = m.declare_poncho(archive)
    for task in (PythonTask(make_use()), Task("say_mine")):
        task.add_environment(environment)
        m.submit(task)
    outputs = {task.id: task.output for task in (wait_for_task(m) for _ in range(2))}
    answer, prefix, path = outputs[1]
    assert answer == 42
    assert path.startswith(prefix)
    assert prefix not in (sys.prefix, sys.base_prefix)
    assert outputs[2] == "said 42\n"


def test_venv_with_editable_package_is_packed(tmp_path):
    """It works elsewhere, after the venv is gone; the editable package is in it if that is wanted."""
    venv, source = tmp_path / "venv", tmp_path / "source" / "edited"
    subprocess.run([sys._base_executable, "-m", "venv", "--without-pip", venv], check=True)
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("VALUE = 'edited'\n")
    [packages] = venv.glob("lib/*/site-packages")
    (packages / "edited.pth").write_text(f"{source.parent}\n")
    (packages / "plain.py").write_text("VALUE = 'plain'\n")
    outputs = [tmp_path / "with.tar", tmp_path / "without.tar"]
    package_create.pack_env(str(venv), str(outputs[0]))
    package_create.pack_env(str(venv), str(outputs[1]), ignore_editable_packages=True)
    shutil.rmtree(venv)
    source.rename(tmp_path / "gone")
    printed = []
    for output in outputs:
        folder = output.with_suffix(".d")
        folder.mkdir()
        shutil.unpack_archive(output, folder)
        code = "import plain, json, ssl, sys; print(sys.prefix, plain.VALUE); import edited; print(edited.VALUE)"  # fmt: skip
        command = [folder / "bin" / "python", "-c", code]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd="/")  # fmt: skip
        printed.append(ended.stdout.split())
    assert printed == [[str(outputs[0].with_suffix(".d")), "plain", "edited"], [str(outputs[1].with_suffix(".d")), "plain"]]  # fmt: skip


def test_specification_is_understood():
    spec = {
        "conda": {"channels": ["c"], "dependencies": ["python=3.11", "numpy=1.24=py3", {"pip": ["a"]}]},
        "pip": ["a", "b==2"],
    }
    assert create_conda_spec(spec) == (["c"], ["python=3.11", "numpy=1.24=py3"], ["a", "b==2"])
    with pytest.raises(ValueError, match="no git here: declare data as files"):
        create_conda_spec({"conda": {}, "git": {}})


def test_other_python_needs_conda(monkeypatch, tmp_path):
    monkeypatch.setattr(package_create, "find_conda", str)
    spec = {"conda": {"packages": ["python=2.7"]}}
    with pytest.raises(ValueError, match=r"start with a Python 2\.7"):
        package_create.pack_env(spec, str(tmp_path / "out.tar.gz"))


def test_folder_without_python_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no bin/python3"):
        package_create.pack_env(str(tmp_path), str(tmp_path / "out.tar.gz"))
    assert not (tmp_path / "out.tar.gz").exists()
