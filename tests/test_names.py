"""The bounds that names, modules and pages keep, counted in the sources."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("daskvine", "vinecore", "worker/vineworker")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

MAX_ONE_WORD_FRACTION = 0.45
MAX_REPEATED_CLASS_NAMES = 8
MAX_MODULE_LINES = 500
MAX_LONG_MODULES = 2
MAX_WORDS_OF_A_TEST = 7
MAX_VAGUE_SUBJECTS_PER_1000_WORDS = 1.5
VAGUE_SUBJECTS = re.compile(r"\b(who|whoever|nobody|somebody|whose)\b", re.IGNORECASE)


def product_modules():
    return {path: path.read_text() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@pytest.fixture(scope="module")
def definitions():
    """Return every function and class of the packages, with its module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        (node, str(path.relative_to(ROOT)))
        for path, text in product_modules().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, kinds)
    ]


def test_most_functions_have_several_words(definitions):
    """A verb alone does not say what it acts on."""
    names = [node.name for node, _ in definitions if not isinstance(node, ast.ClassDef)]
    names = [name for name in names if not name.startswith("__")]
    one_word = [name for name in names if "_" not in name.strip("_")]
    assert len(names) > 1000
    assert len(one_word) <= MAX_ONE_WORD_FRACTION * len(names)


def test_few_class_names_are_repeated(definitions):
    """One name means one thing."""
    modules = defaultdict(set)
    for node, module in definitions:
        if isinstance(node, ast.ClassDef):
            modules[node.name].add(module)
    repeated = {name: sorted(found) for name, found in modules.items() if len(found) > 1}
    assert len(repeated) <= MAX_REPEATED_CLASS_NAMES, repeated


def test_few_modules_are_long():
    lines = {str(path.relative_to(ROOT)): text.count("\n") for path, text in product_modules().items()}
    long = {module: count for module, count in lines.items() if count > MAX_MODULE_LINES}
    assert len(long) <= MAX_LONG_MODULES, long


def test_pages_have_concrete_subjects():
    """Sentences say which part acts: the manager, a worker, the user."""
    texts = {page.name: page.read_text() for page in PAGES}
    words = sum(len(re.findall(r"\w+", text)) for text in texts.values())
    found = {name: len(VAGUE_SUBJECTS.findall(text)) for name, text in texts.items()}
    assert words > 10_000
    assert 1000 * sum(found.values()) <= MAX_VAGUE_SUBJECTS_PER_1000_WORDS * words, found


def test_names_of_tests_are_short():
    """The name has the condition and the outcome; a sentence goes into the docstring."""
    names = [
        node.name.removeprefix("test_")
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 1000
    assert [name for name in names if len(name.split("_")) > MAX_WORDS_OF_A_TEST] == []
