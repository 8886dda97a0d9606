"""Python environments as archives that work wherever they are unpacked."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LEFT_OUT = {"__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "turtledemo"}  # fmt: skip
"""Folders of the standard library that tasks do not need, and those of packages."""
LAUNCHER = """\
#!/bin/sh
# a Python may have been built to look for its library only where that was installed
bin=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$bin/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$bin/python3" "$@"
"""
QUERY = """
import json, os, sys, sysconfig
get = sysconfig.get_config_var
shared = os.path.join(get("LIBDIR") or "", get("INSTSONAME") or "") if get("Py_ENABLE_SHARED") else ""
print(json.dumps({
    "version": "python%d.%d" % sys.version_info[:2],
    "program": os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
    "stdlib": sysconfig.get_path("stdlib"),
    "dynload": os.path.join(sysconfig.get_path("platstdlib"), "lib-dynload"),
    "shared": shared,
    "scripts": sysconfig.get_path("scripts"),
    "path": [p for p in sys.path if os.path.isdir(p)],
}))
"""


def pack_environment(prefix: str, output: str, *, ignore_editable: bool = False) -> None:
    """Pack an environment: with conda-pack if conda made it, else with a copy of its Python.

    Parameters
    ----------
    prefix
        The folder of the environment, or of a Python installation.
    output
        The archive.
    ignore_editable
        Whether packages that are installed in editable mode are left out.

    Raises
    ------
    ValueError
        There is no Python in the folder.
    ModuleNotFoundError
        conda made the environment, and conda-pack is not installed.
    """
    if os.path.isdir(os.path.join(prefix, "conda-meta")):
        pack_with_conda_pack(output, ignore_editable, prefix=prefix)
        return
    python = os.path.join(prefix, "bin", "python3")
    if not os.access(python, os.X_OK):
        msg = f"{prefix} is no environment: it has no bin/python3"
        raise ValueError(msg)
    told = subprocess.run([python, "-c", QUERY], capture_output=True, text=True, check=True, cwd="/").stdout
    temporary = f"{output}.{os.getpid()}"
    try:
        packed = output.endswith((".gz", ".tgz"))
        with (
            tarfile.open(temporary, "w:gz", compresslevel=1) if packed else tarfile.open(temporary, "w")
        ) as tar:
            _add_python(tar, json.loads(told), ignore_editable)
        os.replace(temporary, output)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def pack_with_conda_pack(output: str, ignore_editable: bool, **which: str) -> None:
    """Pack an environment that conda has made, by its folder or its name."""
    import conda_pack

    conda_pack.pack(
        output=output, force=True, ignore_missing_files=True, ignore_editable_packages=ignore_editable, **which
    )  # fmt: skip


def _add_python(tar: tarfile.TarFile, about: dict[str, Any], ignore_editable: bool) -> None:
    """Add a copy of a Python, and all that is on its path."""
    version = about["version"]
    library, packages = f"lib/{version}", f"lib/{version}/site-packages"
    tar.add(about["program"], "bin/python3")
    _add_text(tar, "bin/python", LAUNCHER)
    _add_link(tar, f"bin/{version}", "python3")
    tar.add(about["stdlib"], library, filter=_without(LEFT_OUT))
    if os.path.isdir(about["dynload"]) and os.path.dirname(about["dynload"]) != about["stdlib"]:
        tar.add(about["dynload"], f"{library}/lib-dynload", filter=_without(LEFT_OUT))
    if os.path.isfile(about["shared"]):
        tar.add(os.path.realpath(about["shared"]), f"lib/{os.path.basename(about['shared'])}")
    # Debian's Python looks there
    _add_link(tar, f"{library}/dist-packages", "site-packages")
    known = {"bin/python", "bin/python3", f"bin/{version}"}
    for name, path in _find_packages(about, ignore_editable):
        if name not in known:
            known.add(name)
            tar.add(path, f"{packages}/{name}", filter=_without({"__pycache__"}))
    for script in sorted(Path(about["scripts"]).glob("*")):
        if f"bin/{script.name}" not in known:
            _add_script(tar, script)


def _find_packages(about: dict[str, Any], ignore_editable: bool) -> Iterator[tuple[str, str]]:
    """Generate what the folders of packages have, by name, and then packages in editable mode."""
    installed = [p for p in about["path"] if Path(p).name in ("site-packages", "dist-packages")]
    for folder in installed:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            is_link = entry.name.endswith(".pth") or entry.name.startswith("__editable__")
            if not is_link and entry.name != "__pycache__":
                yield entry.name, entry.path
    if ignore_editable:
        return
    stdlib = os.path.dirname(about["stdlib"])
    for folder in about["path"]:
        if folder not in installed and not os.path.abspath(folder).startswith(stdlib + os.sep):
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                is_package = entry.is_dir() and os.path.exists(os.path.join(entry.path, "__init__.py"))
                if is_package or (entry.is_file() and entry.name.endswith((".py", ".so"))):
                    yield entry.name, entry.path
    for folder in installed:
        for finder in sorted(Path(folder).glob("__editable__*_finder.py")):
            yield from _read_mapping(finder)


def _read_mapping(finder: Path) -> Iterator[tuple[str, str]]:
    """Generate the packages that a finder of setuptools finds elsewhere."""
    for node in ast.parse(finder.read_text()).body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == "MAPPING" and isinstance(node, ast.AnnAssign):
            for path in ast.literal_eval(node.value or ast.Dict([], [])).values():
                found = path if os.path.isdir(path) else f"{path}.py"
                yield os.path.basename(found), found


def _without(names: set[str]) -> Callable[[tarfile.TarInfo], tarfile.TarInfo | None]:
    return lambda entry: None if names & set(Path(entry.name).parts[2:]) else entry


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    entry, content = tarfile.TarInfo(name), text.encode()
    entry.size, entry.mode = len(content), 0o755
    tar.addfile(entry, io.BytesIO(content))


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


def _add_script(tar: tarfile.TarFile, script: Path) -> None:
    """Add a command of a package, which starts with the Python beside it."""
    if not script.is_file() or script.name.startswith(("python", "activate", "Activate")):
        return
    content = script.read_bytes()
    first, _, rest = content.partition(b"\n")
    if first.startswith(b"#!") and b"python" in first:
        _add_text(tar, f"bin/{script.name}", "#!/usr/bin/env python\n" + rest.decode(errors="replace"))
    elif not script.is_symlink():
        tar.add(script, f"bin/{script.name}")
