"""The search tool and the calculator."""

from __future__ import annotations

import builtins
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mempo_env.envs.calculator import FUNCTIONS, Calculator, evaluate
from mempo_env.envs.retrieval import Bm25Index
from mempo_env.envs.search_tool import SearchTool
from mempo_env.errors import InfrastructureError
from mempo_env.records import Passage
from mempo_env.tokens import RegexTokenCounter
from mempo_env.tools import Tool, ToolArgumentError

PASSAGES = (
    Passage("1", "Mira", "Mira owns fox. Mira plays chess."),
    Passage("2", "Zed", "Zed plays\ngolf. Zed owns cat."),
    Passage("3", "Long", "one two three four five six seven eight nine ten eleven"),
)


def search_tool(**changes: Any) -> SearchTool:
    arguments: dict[str, Any] = {
        "queries_per_call": 3,
        "topk": 2,
        "max_passage_tokens": 10,
        "token_counter": RegexTokenCounter(),
        "titles": False,
    }
    tool = SearchTool(**arguments | changes)
    tool.index = Bm25Index.in_memory(PASSAGES)
    return tool


def test_one_line_per_query() -> None:
    result = search_tool().call({"queries": [" Mira\n plays ", "zzz", "golf"]})
    assert result.splitlines() == [
        "Mira plays: Mira owns fox. Mira plays chess. | Zed plays golf. Zed owns cat.",
        "zzz: nothing found",
        "golf: Zed plays golf. Zed owns cat.",
    ]


def test_titles_and_cut_passages() -> None:
    result = search_tool(titles=True, topk=1).call({"queries": ["eleven", "golf"]})
    assert result.splitlines() == [
        "eleven: [Long] one two three four five six seven eight nine ten ...",
        "golf: [Zed] Zed plays golf. Zed owns cat.",
    ]


def test_queries_are_made_encodable() -> None:
    assert search_tool().call({"queries": ["\ud800"]}) == "?: nothing found"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "list of strings"),
        ({"queries": "golf"}, "list of strings"),
        ({"queries": ["golf", 3]}, "list of strings"),
        ({"queries": []}, "at least one"),
        ({"queries": ["golf", "  "]}, "empty"),
        ({"queries": ["a"] * 4}, "at most 3"),
        ({"queries": ["a" * 401]}, "400"),
        ({"queries": ["a"], "k": 3}, "nothing else"),
    ],
)
def test_bad_search_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolArgumentError, match=message):
        search_tool().call(arguments)


def test_searching_without_a_corpus_is_nobodys_fault() -> None:
    tool = search_tool()
    tool.index = None
    with pytest.raises(InfrastructureError):
        tool.call({"queries": ["a"]})


def test_both_keep_the_tool_contract() -> None:
    assert isinstance(search_tool(), Tool)
    assert isinstance(Calculator(), Tool)
    assert search_tool().spec.parameters["properties"]["queries"]["maxItems"] == 3


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1 + 1", "1 + 1 = 2"),
        (" 2*(3+4)**2 ", "2*(3+4)**2 = 98"),
        ("7/2", "7/2 = 3.5"),
        ("7//2 - -1", "7//2 - -1 = 4"),
        ("-7 % 3", "-7 % 3 = 2"),
        ("0.1+0.2", "0.1+0.2 = 0.3"),
        ("1e3", "1e3 = 1000"),
        ("2**-1", "2**-1 = 0.5"),
        ("2**0.5", "2**0.5 = 1.41421356237"),
        ("2**1000 // 2**998", "2**1000 // 2**998 = 4"),
        ("(-8)**3", "(-8)**3 = -512"),
        ("1**99999999", "1**99999999 = 1"),
        ("(-1)**99999999", "(-1)**99999999 = -1"),
        ("1/3", "1/3 = 0.333333333333"),
        ("max(1, 2.5, -3)", "max(1, 2.5, -3) = 2.5"),
        ("min(4)", "min(4) = 4"),
        ("sum(1, 2, 3) / 2", "sum(1, 2, 3) / 2 = 3"),
        ("sum(0.1, 0.2)", "sum(0.1, 0.2) = 0.3"),
        ("-abs (-3) ** 2", "-abs (-3) ** 2 = -9"),
        ("round(2.5)", "round(2.5) = 2"),
        ("round(1234.567, 2)", "round(1234.567, 2) = 1234.57"),
        ("round(1250, -2)", "round(1250, -2) = 1200"),
        ("sqrt(2)", "sqrt(2) = 1.41421356237"),
        ("sqrt(16)", "sqrt(16) = 4"),
        ("floor(-2.5) + ceil(-2.5)", "floor(-2.5) + ceil(-2.5) = -5"),
    ],
)
def test_arithmetic(expression: str, result: str) -> None:
    assert Calculator().call({"expression": expression}) == result


NO_ARITHMETIC = [
    *("", "  ", "1+", "((1)", "1 2", "007", "**", "1e", "e", "x", "True", "1j", "lambda: 1", "'a'*9", "1_000", "0x10"),
    *("__import__('os')", "(1).real", "[1]", "1,000", "2^3", "1 if 1 else 2", "1=1", "1<2", "1\n+1", "1 # c"),
    *("1/0", "5 % 0", "0**-1", "1e999", "1e308*10", "(-8)**0.5"),
    *("9**9**9", "9**9**9**9", "2**1025", "2**1000*2**1000", "10**400", "9.0**9**9", "(2**1000+1)**2"),
    *("(2**1000)/(0.1**300)", "1" * 201, "9" * 199 + "**9", "(" * 150, "-" * 199 + "1+", "9" * 200 + "1"),
    "(" * 99 + "1" + ")" * 99 + "x",
    # Functions: none but the listed ones, called with numbers, and none that computes something huge.
    *(
        "max",
        "abs",
        "(abs)(1)",
        "abs(abs)",
        "max()",
        "sqrt()",
        "abs(1, 2)",
        "max(1)(2)",
        "1(2)",
        "max(*(1, 2))",
        "(1, 2)",
    ),
    *(
        "max(1, 2, key=abs)",
        "abs.real",
        "abs(1).real",
        "abs(1)[0]",
        "maxmin(1)",
        "1abs(1)",
        "log(1)",
        "int(1)",
        "eval(1)",
    ),
    *(
        "round(5, -1000000000)",
        "round(1.5, 10**9)",
        "round(1, 0.5)",
        "sqrt(-1)",
        "sqrt(2**1023 * 2)",
        "abs\n(1)",
        "()",
        "1,",
    ),
    *("sum(9**323, 9**323)", "abs(9)**abs(9)**abs(9)", "floor(1e308 * 10)", "max(1, (2, 3))", "f'{1}'", "`1`"),
    *(
        "[].append(1)",
        "{1}",
        "(1 for e in e)",
        "e:=1",
        "1;2",
        "e=1",
        "assert 1",
        "..",
        "...",
        "1 and 2",
        "not 1",
        "~1",
        "1@2",
    ),
    *(
        "1<<9",
        "1>>1",
        "1|2",
        "1&2",
        "\u0661+1",
        "１+1",
        "1\u00a0+1",
        "1\x00",
        "\ud800",
        "max\u200b(1)",
        "<answer>1</answer>",
    ),
]


@pytest.mark.parametrize("expression", NO_ARITHMETIC)
def test_what_is_no_arithmetic_or_too_large_is_an_argument_error(expression: str) -> None:
    with pytest.raises(ToolArgumentError):
        Calculator().call({"expression": expression})


@pytest.mark.parametrize("arguments", [{}, {"expression": 3}, {"expression": None}, {"expression": "1", "x": 2}])
def test_bad_calculator_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ToolArgumentError):
        Calculator().call(arguments)


@given(st.text(alphabet="0123456789.eE+-*/%() ", max_size=60))
def test_any_expression_ends_in_a_number_or_an_argument_error(expression: str) -> None:
    try:
        value = evaluate(expression)
    except ToolArgumentError:
        return
    assert isinstance(value, int | float)
    assert value.bit_length() <= 1024 if isinstance(value, int) else math.isfinite(value)


@given(
    st.lists(
        st.sampled_from(
            [*FUNCTIONS, "(", ")", ",", " ", "1", "2.5", "9", "1e308", "**", "*", "+", "-", "//", "%", "e"]
        ),
        max_size=24,
    ).map("".join)
)
def test_any_expression_with_functions_ends_in_a_number_or_an_argument_error(expression: str) -> None:
    try:
        value = evaluate(expression)
    except ToolArgumentError:
        return
    assert isinstance(value, int | float)
    assert value.bit_length() <= 1024 if isinstance(value, int) else math.isfinite(value)


_SAFE = {name: getattr(math, name, None) or getattr(builtins, name) for name in FUNCTIONS}
_SAFE["sum"] = lambda *values: sum(values)
_SAFE["min"], _SAFE["max"] = (lambda *v: sorted(v)[0]), (lambda *v: sorted(v)[-1])
_EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str) | st.sampled_from(["0.5", "3.25", "1e3", ".1", "7."]),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner),
        st.builds("-{}".format, inner),
        st.builds("{}({})".format, st.sampled_from(["abs", "floor", "ceil", "sqrt", "round"]), inner),
        st.builds("{}({}, {})".format, st.sampled_from(["min", "max", "sum"]), inner, inner),
    ),
    max_leaves=6,
)


@given(_EXPRESSIONS)
def test_values_are_those_of_python(expression: str) -> None:
    """Against Python's own evaluation, which the text, being made of these parts, may be trusted to."""
    try:
        expected = eval(expression, {"__builtins__": {}}, _SAFE)
    except (ArithmeticError, ValueError):
        expected = None
    if expected is None or len(expression) > 200:
        with pytest.raises(ToolArgumentError):
            evaluate(expression)
    else:
        assert evaluate(expression) == expected


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.sampled_from(["+", "-", "*"]))
def test_whole_numbers_are_exact(left: int, right: int, sign: str) -> None:
    expected = {"+": left + right, "-": left - right, "*": left * right}[sign]
    assert evaluate(f"({left}) {sign} ({right})") == expected
