"""The rooms of the house and the one direction between them, read from the sources.

``daskvine -> vinecore -> vinecore.protocol <- vineworker``
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"daskvine": ROOT, "vinecore": ROOT, "vineworker": ROOT / "worker"}

# The mind gets the time, the disk and the world as events.
HANDS = {
    *("asyncio", "io", "logging", "os", "pathlib", "random", "select", "selectors", "signal", "socket"),
    *("subprocess", "threading", "time"),
}


class Import(NamedTuple):
    """One imported module, by its full name."""

    module: str
    where: str
    only_for_types: bool

    @property
    def top(self):
        return self.module.partition(".")[0]

    def within(self, package):
        return self.module == package or self.module.startswith(f"{package}.")


def imports_of(package):
    """Return every import in the sources of a package, including those inside functions."""
    root = PACKAGES[package.partition(".")[0]]
    folder = root.joinpath(*package.split("."))
    files = sorted(folder.rglob("*.py")) or [folder.with_suffix(".py")]
    return [found for file in files for found in imports_in(file, root)]


def imports_in(file, root):
    tree = ast.parse(file.read_text(), filename=str(file))
    typing_only = {id(node) for block in type_checking_blocks(tree) for node in ast.walk(block)}
    parts = file.relative_to(root).with_suffix("").parts
    package = parts[:-1]  # of the module itself; an __init__ is a module of its own package
    for node in ast.walk(tree):
        for module in modules_of(node, package):
            yield Import(module, f"{file.relative_to(ROOT)}:{node.lineno}", id(node) in typing_only)


def type_checking_blocks(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from node.body


def modules_of(node, package):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = package[: len(package) - node.level + 1] if node.level else ()
    base = ".".join([*above, *([node.module] if node.module else [])])
    # `from package import module` may mean a module, so each name counts as one
    return [f"{base}.{alias.name}" for alias in node.names]


def violations(package, allowed):
    return [f"{found.where} imports {found.module}" for found in imports_of(package) if not allowed(found)]


def standard(found):
    # typing_extensions may name a type, as nothing of that is left when the code runs
    return found.top in sys.stdlib_module_names or (found.only_for_types and found.top == "typing_extensions")


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_something_to_read(package):
    assert len(imports_of(package)) > 10


def test_daskvine_does_not_know_the_worker():
    assert violations("daskvine", lambda found: found.top != "vineworker") == []


def test_the_engine_does_not_know_dask():
    above = {"dask", "distributed", "daskvine", "vineworker"}
    assert violations("vinecore", lambda found: found.top not in above) == []


def test_the_worker_needs_only_the_standard_library_psutil_and_the_protocol():
    def allowed(found):
        # the package itself is empty until one of its names is used
        protocol = found.module == "vinecore" or found.within("vinecore.protocol")
        return standard(found) or found.top in {"psutil", "vineworker"} or protocol

    assert violations("vineworker", allowed) == []


def test_the_protocol_needs_only_the_standard_library():
    assert violations("vinecore.protocol", lambda f: standard(f) or f.within("vinecore.protocol")) == []


def test_the_mind_has_no_hands():
    def allowed(found):
        return found.top not in HANDS and not found.within("vinecore.server")

    assert violations("vinecore.scheduler", allowed) == []


def modules_after(statement):
    """Return the names of all modules in a fresh interpreter that ran a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    path = [str(ROOT), str(ROOT / "worker")]
    code = f"import sys\nsys.path[:0] = {path!r}\n{code}"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(ended.stdout))


def test_the_protocol_is_imported_without_the_engine():
    modules = modules_after("import vinecore.protocol")
    assert {"vinecore", "vinecore.protocol"} <= modules
    assert not modules & {"msgspec", "dask", "psutil", "cloudpickle", "numpy", "vinecore.manager.manager"}


def test_the_factory_loads_dask_only_when_it_is_asked_for():
    modules = modules_after("import vinecore.factory.cli, vinecore.factory.condor, vinecore.factory.slurm")
    assert not modules & {"dask", "distributed", "daskvine"}


def test_the_worker_starts_without_the_engine():
    modules = modules_after("import vineworker.cli")
    assert not modules & {
        "msgspec",
        "dask",
        "cloudpickle",
        "numpy",
        "rich",
        "click",
        "vinecore.manager.manager",
    }
