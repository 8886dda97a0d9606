"""What is written agrees with what is there."""

from __future__ import annotations

import re
from pathlib import Path

from daskvine.options import describe

ROOT = Path(__file__).parents[1]


def test_the_table_of_options_in_the_readme_is_that_of_the_code() -> None:
    readme = (ROOT / "README.md").read_text()
    start, end = "<!-- options: made by daskvine.options.describe -->\n", "<!-- end of options -->"
    assert readme.partition(start)[2].partition(end)[0].strip() == describe().strip()


def test_every_file_that_the_design_page_names_is_there() -> None:
    page = (ROOT / "docs" / "design.md").read_text().partition("```\n")[2].partition("```")[0]
    names = {word for word in page.replace(":", " ").split() if word.endswith(".py")}
    known = {path.name for room in ("daskvine", "vinecore", "worker") for path in (ROOT / room).rglob("*.py")}
    assert names <= known


def test_every_test_that_the_page_on_security_names_is_there() -> None:
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
