"""Pages agree with the code: generated parts, names of files, folders and tests.

``python -m tests.test_docs`` writes the generated parts anew.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from daskvine import older_spellings
from daskvine.options import describe
from tests import taskvine_parity
from vinecore.journal import records
from vinecore.scheduler.transitions import TRANSITIONS
from vinecore.scheduler.tuning import describe_parameters

ROOT = Path(__file__).parents[1]
PACKAGES = ("daskvine", "vinecore", "worker/vineworker")
PAGES = sorted(["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])


def draw_transitions() -> str:
    """Return the task states and their transitions as a Mermaid diagram."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for event, states in TRANSITIONS.items():
        for source, target in states.items():
            arrows.setdefault((source, target), []).append(event)
    lines = [f"    {source} --> {target}: {', '.join(names)}" for (source, target), names in arrows.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> waiting", *lines, "```"])


GENERATED: dict[str, tuple[str, Callable[[], str]]] = {
    "daskvine.options.describe": ("docs/options.md", describe),
    "daskvine.older_spellings.describe": ("docs/options.md", older_spellings.describe),
    "vinecore.scheduler.tuning.describe_parameters": ("docs/tuning.md", describe_parameters),
    "tests/taskvine_parity.tsv": ("docs/taskvine.md", taskvine_parity.describe),
    "vinecore.scheduler.transitions": ("docs/task-lifecycle.md", draw_transitions),
}


def split_at_marks(page: str, source: str) -> tuple[str, str, str]:
    """Return what is before, within and after the generated part of a page."""
    before, start, rest = page.partition(f"<!-- generated from {source} -->\n")
    part, end, after = rest.partition("<!-- end -->")
    return before + start, part, end + after


@pytest.mark.parametrize("source", GENERATED)
def test_generated_part_is_current(source: str) -> None:
    """After a change of its source, ``python -m tests.test_docs`` writes it anew."""
    page, generate = GENERATED[source]
    assert split_at_marks((ROOT / page).read_text(), source)[1].strip() == generate().strip()


@pytest.mark.parametrize("page", PAGES)
def test_named_modules_exist(page: str) -> None:
    """A path of a module may begin at any folder of its package."""
    known = [
        f"/{path.relative_to(ROOT)}"
        for top in (*PACKAGES, "tests", "benchmarks")
        for path in (ROOT / top).rglob("*.py")
    ]
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    named = set(re.findall(r"`(\w+(?:/\w+)+\.py)`", text))
    assert {name for name in named if not any(path.endswith(f"/{name}") for path in known)} == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", path.read_text()):
        other = path.parent / target if target else path
        assert other.exists(), target
        if anchor:
            assert anchor in {as_anchor(line) for line in other.read_text().splitlines()}, (
                f"{target}#{anchor}"
            )


def test_index_lists_every_page_once() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    listed = re.findall(r"^- \[\S+\]\((\w[\w-]*\.md)\)", index, re.MULTILINE)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert sorted(listed) == sorted(pages)
    assert "(docs/index.md)" in (ROOT / "README.md").read_text()


def test_index_names_every_command() -> None:
    commands = re.findall(r'^(vine_\w+) = "', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    index = (ROOT / "docs" / "index.md").read_text()
    assert "vine_worker" in commands
    assert [name for name in commands if f"`{name}`" not in index] == []


# Names in the pages that the code does not use: of other packages and programs, and beginnings of names.
FOREIGN = {
    "BeginTime", "ConnectionRefusedError", "DASK_SCHEDULER_ADDRESS", "HistEFT", "NamedTemporaryFile",
    "QOSMaxCpuPerUserLimit", "aiohttp", "closerange", "declare_chirp", "errstate", "singledispatch", "split_every",
    "MAX_", "MIN_", "_INTERVAL_S", "_TIMEOUT_S", "can_", "has_", "on_", "corrections", "unharmed",
}  # fmt: skip


@functools.cache
def read_words() -> frozenset[str]:
    """Return all words of the code, the kinds of the journal's records, and the foreign names."""
    sources = [path for top in (*PACKAGES, "benchmarks") for path in (ROOT / top).rglob("*.py")]
    words = re.findall(r"\w+", "\n".join(path.read_text() for path in sources))
    kinds = [records.record_kind(record.__name__) for record in records.RECORDS]
    return frozenset(words) | frozenset(kinds) | FOREIGN


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_names_in_pages_exist(page: str) -> None:
    """A name, with or without dots and arguments, consists of words that the code has, too."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    named = re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`\n]*\))?`", text)
    words = {word for name in named for word in name.split(".") if word}
    assert {word for word in words - read_words() if not word.startswith("test_")} == set()


def as_anchor(line: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return (
        re.sub(r"[^\w -]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
        if line.startswith("#")
        else ""
    )


def test_every_folder_is_in_the_drawing() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawing = page.partition("## Folders")[2].partition("```\n")[2].partition("```")[0]
    drawn, parents = set(), []
    for line in drawing.splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 4
        parents = [*parents[:depth], name.rstrip("/")]
        drawn.add("/".join(parents))
    folders = {
        str(path.parent.relative_to(ROOT)) for top in PACKAGES for path in (ROOT / top).rglob("__init__.py")
    }
    assert folders - drawn == set()
    assert {name for name in drawn if not (ROOT / name).is_dir()} == set()


def test_tests_named_on_the_security_page_exist() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 30
    assert named <= there
    assert all((ROOT / path).exists() for path in re.findall(r"`(tests/[\w/]+\.py)`", page))


if __name__ == "__main__":
    for source, (page, generate) in GENERATED.items():
        before, _old, after = split_at_marks((ROOT / page).read_text(), source)
        (ROOT / page).write_text(f"{before}{generate().strip()}\n{after}")
