"""Conditions on the fields of records, such as ``tasks_waiting > 10 && owner == "me"``.

A condition is written as in TaskVine or as in Python: comparisons, ``and``, ``or``, ``not`` (or ``&&``,
``||``, ``!``), arithmetic, ``in``, lists, and names of fields. It is never executed as Python.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_CHARACTERS = 10_000
MAX_DEPTH = 50
# Texts stay as they are; a "!" that begins "!=" is none.
SYMBOLS = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(&&)|(\|\|)|(!(?!=))""")
CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}


class RecordFilter:
    """A condition that records meet or not.

    Parameters
    ----------
    text
        The condition.

    Raises
    ------
    ValueError
        It is no condition.
    """

    def __init__(self, text: str) -> None:
        def translate(found: re.Match[str]) -> str:
            return found[1] or (" and " if found[2] else " or " if found[3] else " not ")

        try:
            if len(text) > MAX_CHARACTERS:
                msg = f"it has more than {MAX_CHARACTERS:,} characters"
                raise ValueError(msg)
            self._tree = ast.parse(SYMBOLS.sub(translate, text).strip(), mode="eval").body
            _check(self._tree, MAX_DEPTH)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            msg = f"{text[:200]!r} is no condition, such as 'tasks_waiting > 10 && owner == \"me\"': {error}"
            raise ValueError(msg) from None

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record meets the condition; one that lacks a compared field does not.

        Parameters
        ----------
        record
            The fields.
        """
        try:
            return bool(_evaluate(self._tree, record))
        except (TypeError, ValueError, ArithmeticError):
            return False


def _check(node: ast.AST, depth: int) -> None:
    """Refuse what is not evaluated."""
    known = (ast.BoolOp, ast.UnaryOp, ast.Compare, ast.BinOp, ast.Name, ast.Constant, ast.List, ast.Tuple)
    operators = (ast.boolop, ast.unaryop, ast.cmpop, ast.operator, ast.expr_context)
    if isinstance(node, operators):
        allowed = (*COMPARISONS, *ARITHMETIC, ast.And, ast.Or, ast.Not, ast.USub, ast.Load)
    else:
        allowed = known
    if not isinstance(node, allowed) or depth <= 0:
        msg = f"{type(node).__name__} is not allowed" if depth > 0 else "it is nested too deeply"
        raise ValueError(msg)
    for child in ast.iter_child_nodes(node):
        _check(child, depth - 1)


def _evaluate(node: ast.expr, record: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.BoolOp):
        combine = all if isinstance(node.op, ast.And) else any
        return combine(_evaluate(value, record) for value in node.values)
    if isinstance(node, ast.UnaryOp):
        value = _evaluate(node.operand, record)
        return not value if isinstance(node.op, ast.Not) else -value
    if isinstance(node, ast.Compare):
        values = [_evaluate(one, record) for one in (node.left, *node.comparators)]
        steps = zip(node.ops, values, values[1:], strict=False)
        return all(COMPARISONS[type(op)](left, right) for op, left, right in steps)
    if isinstance(node, ast.BinOp):
        left, right = _number(_evaluate(node.left, record)), _number(_evaluate(node.right, record))
        return ARITHMETIC[type(node.op)](left, right)
    if isinstance(node, ast.Name):
        return CONSTANTS.get(node.id) if node.id in CONSTANTS else record.get(node.id)
    if isinstance(node, ast.Constant):
        return node.value
    assert isinstance(node, (ast.List, ast.Tuple))
    return [_evaluate(element, record) for element in node.elts]


def _number(value: Any) -> float:
    """Return an operand of arithmetic; one text times a number could take all memory."""
    if not isinstance(value, (int, float)):
        msg = f"{value!r} is no number"
        raise TypeError(msg)
    return value
