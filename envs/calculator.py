"""The calculator tool: arithmetic on numbers and nothing else.

The evaluator is simpleeval's, cut down to four kinds of node, with operators and functions that check sizes.

Invariants:
    * only plain numbers, ``+ - * / // % **``, parentheses and the functions of ``FUNCTIONS`` are evaluated: no names,
      no attributes, no strings, no lists, no keywords;
    * the expression's length and every intermediate result are bounded before they are computed, so that any input
      ends at once.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from simpleeval import InvalidExpression, SimpleEval

from mempo_env.tools import ToolArgumentError, ToolSpec

MAX_CHARACTERS = 200
MAX_BITS = 1024
"""Largest magnitude of a whole number, 2**1024, which is also where floating point ends."""
MAX_DIGITS = 15
"""Most digits to round to, before or after the point: beyond, a float has none, and 10**digits is computed."""

Number = int | float


def _bounded(value: Any) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ToolArgumentError(f"only {_PERMITTED} are allowed.")
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise OverflowError
    elif not math.isfinite(value):
        raise OverflowError
    return value


def _bounding(function: Callable[..., Any]) -> Callable[..., Number]:
    return lambda *values: _bounded(function(*values))


def _power(base: Number, exponent: Number) -> Number:
    """A whole-number power is refused by its size before it is computed; floats overflow by themselves."""
    if isinstance(base, int) and isinstance(exponent, int):
        if abs(base) > 1 and (abs(base).bit_length() - 1) * exponent > MAX_BITS:
            raise OverflowError
    elif base < 0 and not float(exponent).is_integer():
        raise ToolArgumentError("a negative number has no real fractional power.")
    return _bounded(base**exponent)


def _round(value: Number, digits: Number = 0) -> Number:
    """Half to even, as Python rounds; a whole number where no digits after the point are asked for."""
    if not isinstance(digits, int) or abs(digits) > MAX_DIGITS:
        raise ToolArgumentError(f"round takes a whole number of digits from -{MAX_DIGITS} to {MAX_DIGITS}.")
    return _bounded(round(value, digits) if digits > 0 else int(round(value, digits)))


def _least(value: Number, *others: Number) -> Number:
    return min(value, *others) if others else value


def _greatest(value: Number, *others: Number) -> Number:
    return max(value, *others) if others else value


FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": _bounding(lambda value: abs(value)),
    "ceil": _bounding(lambda value: math.ceil(value)),
    "floor": _bounding(lambda value: math.floor(value)),
    "max": _bounding(_greatest),
    "min": _bounding(_least),
    "round": _round,
    "sqrt": _bounding(lambda value: math.sqrt(value)),
    "sum": _bounding(lambda *values: sum(values)),
}
_OPERATORS: dict[type[ast.AST], Callable[..., Number]] = {
    ast.Add: _bounding(operator.add),
    ast.Sub: _bounding(operator.sub),
    ast.Mult: _bounding(operator.mul),
    ast.Div: _bounding(operator.truediv),
    ast.FloorDiv: _bounding(operator.floordiv),
    ast.Mod: _bounding(operator.mod),
    ast.Pow: _power,
    ast.UAdd: _bounding(operator.pos),
    ast.USub: _bounding(operator.neg),
}
_PERMITTED = f"plain numbers, + - * / // % **, parentheses and {', '.join(FUNCTIONS)}"
_ALLOWED = re.compile(rf"(?:[0-9.eE+\-*/%(), \t]|\b(?:{'|'.join(FUNCTIONS)})(?=[ \t]*\())*")


class _Arithmetic(SimpleEval):  # type: ignore[misc]  # simpleeval ships no types
    """simpleeval's walk over the syntax tree, for constants, operators and calls alone."""

    def __init__(self) -> None:
        super().__init__(operators=_OPERATORS, functions=FUNCTIONS, names={})
        self.nodes = {
            ast.Constant: lambda node: _bounded(node.value),
            ast.UnaryOp: self._eval_unaryop,
            ast.BinOp: self._eval_binop,
            ast.Call: self._eval_call,
        }


class Calculator:
    """Computes one expression a call."""

    spec = ToolSpec(
        name="calculator",
        description=(
            "Computes an arithmetic expression with + - * / // % **, parentheses and the functions "
            f"{', '.join(FUNCTIONS)}."
        ),
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
        expression: Numbers, ``+ - * / // % **``, parentheses, calls of ``FUNCTIONS``; at most ``MAX_CHARACTERS`` long.

    Returns:
        An int where all operations keep whole numbers, else a finite float.

    Raises:
        ToolArgumentError: It is anything else, or its value is undefined or too large.

    >>> evaluate("2 * (3 + 4) ** 2")
    98
    >>> evaluate("round(sqrt(2), 3) + max(1, 2, 3)")
    4.414
    """
    if len(expression) > MAX_CHARACTERS:
        raise ToolArgumentError(f"an expression may have at most {MAX_CHARACTERS} characters.")
    if not _ALLOWED.fullmatch(expression):
        raise ToolArgumentError(f"only {_PERMITTED} are allowed.")
    try:
        tree = ast.parse(expression, mode="eval").body  # ours: simpleeval would read statements, and warn of them
        return _bounded(_Arithmetic().eval(expression, previously_parsed=tree))
    except ZeroDivisionError:
        raise ToolArgumentError("the expression divides by zero.") from None
    except OverflowError:
        raise ToolArgumentError("the result is too large.") from None
    except TypeError:
        raise ToolArgumentError("a function was given too few or too many numbers.") from None
    except InvalidExpression:
        raise ToolArgumentError(f"only {_PERMITTED} are allowed.") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolArgumentError("the expression is not valid arithmetic, or has no real value.") from None
