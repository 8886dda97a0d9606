"""The packages, the direction of the imports between them, and their private names.

``daskvine -> vinecore -> vinecore.protocol <- vineworker``

All of it is read from the sources. Imports for annotations count like others.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness.processes import PATIENCE_S
from vinecore.scheduler import ORDER

ROOT = Path(__file__).parents[1]
PACKAGES = {"daskvine": ROOT, "vinecore": ROOT, "vineworker": ROOT / "worker"}

# The scheduler receives the time, the state of disks and all messages as events.
MODULES_WITH_EFFECTS = {
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


@functools.cache
def parse(file):
    return ast.parse(file.read_text(), filename=str(file))


@functools.cache
def imports_in(file, root):
    return list(find_imports(file, root))


def find_imports(file, root):
    tree = parse(file)
    typing_only = {id(node) for block in type_checking_blocks(tree) for node in ast.walk(block)}
    parts = file.relative_to(root).with_suffix("").parts
    package = parts[:-1]  # of the module itself; an __init__ is a module of its own package
    for node in ast.walk(tree):
        for module in modules_of(node, package):
            yield Import(module, f"{file.relative_to(ROOT)}:{node.lineno}", id(node) in typing_only)


def type_checking_blocks(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
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
def test_package_has_imports(package):
    assert len(imports_of(package)) > 10


def test_daskvine_does_not_import_worker():
    assert violations("daskvine", lambda found: found.top != "vineworker") == []


def test_vinecore_does_not_import_dask():
    above = {"dask", "distributed", "daskvine", "vineworker"}
    assert violations("vinecore", lambda found: found.top not in above) == []


def test_worker_imports_allowed_packages_only():
    """Worker imports standard library psutil and protocol only."""

    def allowed(found):
        # the package itself is empty until one of its names is used
        protocol = found.module == "vinecore" or found.within("vinecore.protocol")
        return standard(found) or found.top in {"psutil", "vineworker"} or protocol

    assert violations("vineworker", allowed) == []


def test_protocol_imports_standard_library_only():
    assert violations("vinecore.protocol", lambda f: standard(f) or f.within("vinecore.protocol")) == []


def test_scheduler_does_no_io():
    def allowed(found):
        return found.top not in MODULES_WITH_EFFECTS and not found.within("vinecore.server")

    assert violations("vinecore.scheduler", allowed) == []


# Circles that exist. A module or folder that leaves its circle has to leave its list, too.
KNOWN_MODULES_IN_CIRCLES: dict[str, list[str]] = {}
KNOWN_FOLDERS_IN_CIRCLES = []
# Private names that a module uses of another folder's objects. A use that is gone has to leave the list.
KNOWN_PRIVATE_USES = []
PUBLIC_WITH_UNDERSCORE = {
    "_asdict",
    "_data",
    "_exit",
    "_fields",
    "_make",
    "_replace",
}  # of the standard library


def own_modules():
    """Return the source file of every module of the three packages, by name."""
    return {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for package, root in PACKAGES.items()
        for file in sorted((root / package).rglob("*.py"))
    }


def folder_of(module, files):
    """Return the folder of a module; a module beside the folders of a package stands for itself."""
    folder = module if files[module].name == "__init__.py" else module.rpartition(".")[0]
    return module if folder in PACKAGES else folder


def module_graph(files):
    """Return which modules each module imports; a name that is no module stands for its package.

    The exception is `__version__`, which needs nothing of what its package re-exports.
    """
    graph = {}
    for module, file in files.items():
        root = PACKAGES[module.partition(".")[0]]
        names = {
            found.module for found in imports_in(file, root) if not found.module.endswith(".__version__")
        }
        imported = {name if name in files else name.rpartition(".")[0] for name in names}
        graph[module] = (imported & files.keys()) - {module}
    return graph


def folder_graph(graph, files):
    """Return which folders the modules of each folder import; what a package re-exports does not count."""
    folders = {folder_of(module, files): set() for module in files}
    for module, imported in graph.items():
        if files[module].name != "__init__.py":
            folder = folder_of(module, files)
            folders[folder] |= {folder_of(other, files) for other in imported} - {folder}
    return folders


def nodes_in_circles(graph):
    """Return the nodes that can be reached from themselves."""
    return {node for node in graph if node in reachable(graph, node)}


def reachable(graph, start):
    seen, ahead = set(), [start]
    while ahead:
        new = graph[ahead.pop()] - seen
        seen |= new
        ahead.extend(new)
    return seen


def test_circles_are_found():
    assert nodes_in_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


def test_modules_import_without_circles():
    """Imports go down only, those for annotations included."""
    known = {f"{folder}.{name}" for folder, names in KNOWN_MODULES_IN_CIRCLES.items() for name in names}
    found = nodes_in_circles(module_graph(own_modules()))
    assert sorted(found - known) == [], "new circle"
    assert sorted(known - found) == [], "no longer in a circle: remove it from the list"


def test_folders_import_without_circles():
    files = own_modules()
    found = nodes_in_circles(folder_graph(module_graph(files), files))
    assert sorted(found - set(KNOWN_FOLDERS_IN_CIRCLES)) == [], "new circle"
    assert sorted(set(KNOWN_FOLDERS_IN_CIRCLES) - found) == [], (
        "no longer in a circle: remove it from the list"
    )


def private_names(file):
    """Return the private names that a module defines, and those that it uses of others."""
    defined, used = set(), set()
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if isinstance(node.ctx, ast.Store):
                defined.add(name)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in {"self", "cls"}:
                used.add(name)
    return tuple({n for n in names if re.match("_[^_]", n)} for names in (defined, used))


def test_private_names_stay_in_their_folder():
    """A name counts as another folder's if that folder defines it and the module's own does not."""
    files = own_modules()
    names = {module: private_names(file) for module, file in files.items()}
    defined = defaultdict(set)
    for module, (own, _) in names.items():
        defined[folder_of(module, files)] |= own
    everywhere = set().union(*defined.values()) - PUBLIC_WITH_UNDERSCORE
    found = {
        f"{module}: {name}"
        for module, (_, used) in names.items()
        for name in (used & everywhere) - defined[folder_of(module, files)]
    }
    assert sorted(found - set(KNOWN_PRIVATE_USES)) == [], "private name of another folder"
    assert sorted(set(KNOWN_PRIVATE_USES) - found) == [], "no longer used: remove it from the list"


def modules_after(statement):
    """Return the names of all modules in a fresh interpreter that ran a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    path = [str(ROOT), str(ROOT / "worker")]
    code = f"import sys\nsys.path[:0] = {path!r}\n{code}"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    return set(json.loads(ended.stdout))


def test_protocol_loads_no_manager():
    modules = modules_after("import vinecore.protocol")
    assert {"vinecore", "vinecore.protocol"} <= modules
    assert not modules & {"msgspec", "dask", "psutil", "cloudpickle", "numpy", "vinecore.manager.manager"}


def test_factory_loads_no_dask():
    modules = modules_after("import vinecore.factory.cli, vinecore.factory.condor, vinecore.factory.slurm")
    assert not modules & {"dask", "distributed", "daskvine"}


def test_worker_loads_no_manager():
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


def test_scheduler_modules_import_only_modules_before_them():
    """`vinecore.scheduler.ORDER` names every module, and each imports only those that stand before it."""
    folder = ROOT / "vinecore" / "scheduler"
    assert sorted(ORDER) == sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")
    wrong = []
    for number, name in enumerate(ORDER):
        for found in imports_in(folder / f"{name}.py", ROOT):
            parts = found.module.split(".")
            if parts[:2] == ["vinecore", "scheduler"] and len(parts) > 2 and parts[2] in ORDER[number:]:
                wrong.append(f"{found.where} imports {found.module}")
    assert wrong == []


def names_defined_in(tree):
    """Return the names that a module binds at its top level, conditional ones included."""
    names = set()
    blocks = [tree.body]
    while blocks:
        for node in blocks.pop():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            else:
                names |= {
                    inner.id
                    for inner in ast.walk(node)
                    if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
                }
                blocks += [getattr(node, part, []) for part in ("body", "orelse", "finalbody")]
                blocks += [handler.body for handler in getattr(node, "handlers", [])]
    return names


def test_names_imported_by_tests_and_benchmarks_exist():
    """A test module whose import fails would only be found by the whole suite."""
    files = own_modules()
    tools = [file for folder in ("tests", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))]
    files |= {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in tools}
    defined = {module: names_defined_in(parse(file)) for module, file in files.items()}
    # their other names come from `__getattr__`
    lazy = {module for module, names in defined.items() if "__getattr__" in names}
    missing = []
    for file in tools:
        for found in imports_in(file, ROOT):
            module, _, name = found.module.rpartition(".")
            if found.top not in {*PACKAGES, "tests", "benchmarks"} or found.module in files:
                continue
            is_folder = any(root.joinpath(*found.module.split(".")).is_dir() for root in {*PACKAGES.values()})
            if not (is_folder or module in lazy or name in defined.get(module, ())):
                missing.append(f"{found.where} imports {found.module}")
    assert missing == []


FIXTURES_OF_PYTEST = {
    *("capfd", "caplog", "capsys", "monkeypatch", "pytestconfig", "recwarn", "request"),
    *("tmp_path", "tmp_path_factory"),
}


def decorators_of(function, name):
    """Return the calls and names among the decorators of a function that end in a name."""
    return [
        node
        for node in function.decorator_list
        if ast.unparse(node.func if isinstance(node, ast.Call) else node).endswith(name)
    ]


def is_parametrize(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.parametrize"


def parameters_given_to(function, marks):
    """Return the arguments that `parametrize` and hypothesis give to a test."""
    named = [marks[d.id] for d in function.decorator_list if isinstance(d, ast.Name) and d.id in marks]
    for call in (*decorators_of(function, "parametrize"), *named):
        names = ast.literal_eval(call.args[0])
        yield from re.split(r"\W+", names) if isinstance(names, str) else names
    for call in (*decorators_of(function, "given"), *decorators_of(function, "rule")):
        yield from (keyword.arg for keyword in call.keywords)
        yield from [argument.arg for argument in function.args.args][-len(call.args) :] if call.args else []


def test_arguments_of_tests_are_fixtures():
    """A fixture that was renamed under a test would only be found by the whole suite."""
    functions, marks = {}, {}
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.FunctionDef):
                functions[node] = file.relative_to(ROOT)
            elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(
                "pytest.mark.parametrize("
            ):
                marks[ast.unparse(node.targets[0])] = node.value
    fixtures = {function for function in functions if decorators_of(function, "fixture")}
    names = {function.name for function in fixtures} | FIXTURES_OF_PYTEST
    for function in fixtures:
        for call in decorators_of(function, "fixture"):
            names |= {ast.literal_eval(k.value) for k in getattr(call, "keywords", []) if k.arg == "name"}
    unknown = []
    for function, file in functions.items():
        if function in fixtures or function.name.startswith("test_"):
            arguments = function.args.args[: len(function.args.args) - len(function.args.defaults)]
            given = {"self", *parameters_given_to(function, marks)}
            unknown += [f"{file}:{function.lineno} {a.arg}" for a in arguments if a.arg not in names | given]
    assert unknown == []
