"""Files of rules as hera_opm writes them: a script and a wrapper for each step of each observation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

STEPS = ("ANT_METRICS", "REDCAL", "ABSCAL", "XRFI", "SMOOTH")


def write(folder: Path, observations: int, options: str, *, shared: bool) -> list[str]:
    """Write ``rtp.mf`` with its scripts; return the targets in the order of the file.

    Each step appends its name to ``ran`` if the folder is shared, waits for nothing, and needs the
    step before, of the neighbors in time as well.

    Parameters
    ----------
    folder
        The folder.
    observations
        Number of observations; there is one rule for each of `STEPS`.
    options
        The batch options before each rule.
    shared
        Whether the wrappers use absolute paths of a file system that all nodes share, as HERA's do.
        If not, all files are sources, and each target has the sum of the steps before it.
    """
    lines = [
        "# makeflow file generated from config file rtp.toml",
        "# created at 11:22:33 on 28 November 2026",
    ]
    targets: list[str] = []
    for step in STEPS:
        script = folder / f"do_{step}.sh"
        script.write_text(
            f'#!/bin/sh\necho "$1.{step}" >> {folder}/ran\n' if shared else f'#!/bin/sh\necho "$@" {step}\n'
        )
        script.chmod(0o755)
    for number in range(observations):
        base = f"zen.24584{number:03d}.HH.uvh5"
        for position, step in enumerate(STEPS):
            target = f"{base}.{step}.out"
            before = [
                f"zen.24584{other:03d}.HH.uvh5.{STEPS[position - 1]}.out"
                for other in range(max(0, number - 1), min(observations, number + 2))
                if position > 0
            ]
            wrapper, log = folder / f"wrapper_{base}.{step}.sh", f"{base}.{step}.log"
            if shared:
                wrapper.write_text(f"#!/bin/bash\ndate\ncd {folder}\n{folder}/do_{step}.sh {base}\nif [ $? -eq 0 ]; then\n  cd {folder}\n  touch {target}\nelse\n  mv {folder}/{log} {folder}/{log}.error\nfi\ndate\n")  # fmt: skip
                sources, command = [f"{folder}/do_{step}.sh", *before], f"{wrapper} > {folder}/{log} 2>&1"
            else:
                wrapper.write_text(f"#!/bin/sh\ncat {' '.join(before)} /dev/null | cksum > {target}\n./do_{step}.sh {base} >> {target}\n")  # fmt: skip
                sources, command = [f"do_{step}.sh", wrapper.name, *before], f"./{wrapper.name} > {log} 2>&1"
            wrapper.chmod(0o755)
            lines += [
                f"export BATCH_OPTIONS = {options}",
                f"{target}: {' '.join(sources)}",
                f"\t{command}",
                "",
            ]
            targets.append(target)
    (folder / "rtp.mf").write_text("\n".join(lines))
    return targets
