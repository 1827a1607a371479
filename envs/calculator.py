"""The calculator tool: arithmetic on numbers and nothing else.

Invariant: an expression is read as a syntax tree and only numbers, ``+ - * / // % **`` and parentheses are evaluated;
its length and every intermediate result are bounded before they are computed, so any input ends at once.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from mempo_env.tools import ToolArgumentError, ToolSpec

MAX_CHARACTERS = 200
MAX_BITS = 1024
"""Largest magnitude of a whole number, 2**1024, which is also where floating point ends."""

_ALLOWED = re.compile(r"[0-9.eE+\-*/%() \t]*")
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class Calculator:
    """Computes one expression a call."""

    spec = ToolSpec(
        name="calculator",
        description="Computes an arithmetic expression with + - * / // % ** and parentheses.",
        parameters={
            "type": "object",
            "properties": {"expression": {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS}},
            "required": ["expression"],
        },
    )

    def call(self, arguments: dict[str, Any]) -> str:
        """Computes.

        Args:
            arguments: ``{"expression": ".."}``.

        Returns:
            ``expression = result``; fractions with 12 significant digits.

        Raises:
            ToolArgumentError: The expression is missing, malformed, not arithmetic, too large or undefined.
        """
        if set(arguments) - {"expression"}:
            raise ToolArgumentError("calculator takes expression and nothing else.")
        expression = arguments.get("expression")
        if not isinstance(expression, str) or not expression.strip():
            raise ToolArgumentError('calculator takes {"expression": ".."}, a string that is not empty.')
        value = evaluate(expression.strip())
        return f"{expression.strip()} = {value if isinstance(value, int) else format(value, '.12g')}"


def evaluate(expression: str) -> int | float:
    """Evaluates an arithmetic expression.

    Args:
        expression: Numbers, ``+ - * / // % **`` and parentheses; at most ``MAX_CHARACTERS`` long.

    Returns:
        An int where all operations keep whole numbers, else a finite float.

    Raises:
        ToolArgumentError: It is anything else, or its value is undefined or too large.

    >>> evaluate("2 * (3 + 4) ** 2")
    98
    """
    if len(expression) > MAX_CHARACTERS:
        raise ToolArgumentError(f"an expression may have at most {MAX_CHARACTERS} characters.")
    if not _ALLOWED.fullmatch(expression):
        raise ToolArgumentError("only plain numbers, + - * / // % ** and parentheses are allowed.")
    try:
        return _value(ast.parse(expression, mode="eval").body)
    except ZeroDivisionError:
        raise ToolArgumentError("the expression divides by zero.") from None
    except OverflowError:
        raise ToolArgumentError("the result is too large.") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolArgumentError("the expression is not valid arithmetic.") from None


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _bounded(_UNARY[type(node.op)](_value(node.operand)))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            _check_power(left, right)
        return _bounded(_BINARY[type(node.op)](left, right))
    raise ToolArgumentError("only numbers, + - * / // % ** and parentheses are allowed.")


def _check_power(base: int | float, exponent: int | float) -> None:
    """Refuses a whole-number power by its size before it is computed; floats overflow by themselves."""
    if isinstance(base, int) and isinstance(exponent, int):
        if abs(base) > 1 and (abs(base).bit_length() - 1) * exponent > MAX_BITS:
            raise OverflowError
    elif base < 0 and not float(exponent).is_integer():
        raise ToolArgumentError("a negative number has no real fractional power.")


def _bounded(value: int | float) -> int | float:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise OverflowError
    elif not math.isfinite(value):
        raise OverflowError
    return value
