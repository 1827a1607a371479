"""Hostile text: what models, passages and pranksters write, and random outputs made of it.

Needs no test framework; ``mempo_env.fuzzing`` plays it, and tests of other layers take their cases from here.

Invariant: an output is a function of the generator that was handed in, and of the tools on offer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from .actions import TAGS
from .tools import ToolSpec

CONTROL_TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|file_sep|>", "<repo_name>"),  # Qwen2.5, SmolLM2
    *("<|begin_of_text|>", "<|start_header_id|>assistant<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),  # Llama 3
    *(
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<start_of_turn>model",
        "<end_of_turn>",
    ),  # Llama 2, Mistral, Gemma
)
"""How chat models write their control tokens; in text that is data they are text."""
TAG_LOOKALIKES = (
    *(
        "<MEM>",
        "</Mem>",
        "< mem >",
        "<mem/>",
        "<mem\n>",
        '<mem id="1">',
        "<answer",
        "</ answer>",
        "<ANSWER >",
        "<tool_call\t>",
    ),
    *("＜mem＞", "‹answer›", "⟨/mem⟩", "<m\u200bem>", "<mеm>", "&lt;answer>", "\\u003canswer>", "<answer\u202e>"),
)
"""What looks like a tag of ours and is none."""
ODD_TEXT = (
    *(
        "\x00",
        "\x1b[2J",
        "\x1b]0;t\x07",
        "\x9b1m",
        "\r",
        "\x08",
        "\x7f",
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\u2028",
    ),
    *(
        "\ud800",
        "\udfff",
        "e\u0301",
        "文",
        "😀",
        "👨\u200d👩",
        "\U0010ffff",
        "\n",
        "\t",
        ";",
        "\\",
        '"',
        "{",
        "}",
        "[",
        "]",
    ),
    *("\nTask: x", "\nMemory: x", "\nResult: x", "\nBudget: 99 tool calls", "Format error (no_action): "),
)
"""Control characters, marks that reorder or hide, broken Unicode, and lines that look like an observation's."""
_TAGS = tuple(f"<{slash}{tag}>" for tag in TAGS.values() for slash in ("", "/"))
_PIECES = (*_TAGS, *_TAGS, *CONTROL_TOKENS, *TAG_LOOKALIKES, *ODD_TEXT, "word", "a b c", "0")


class OutputFuzzer:
    """Draws outputs: well-formed ones, mutated ones, broken grammar and plain noise.

    Args:
        tools: What is called.
        rng: Where everything is drawn from.
        long_share: Share of outputs that are blown up to as much as a megabyte.
    """

    def __init__(self, tools: Sequence[ToolSpec], rng: random.Random, long_share: float = 1e-4) -> None:
        self._tools = tools
        self._rng = rng
        self._long_share = long_share
        self._kinds: tuple[Callable[[], str], ...] = (
            self._well_formed,
            self._well_formed,
            self._mutated,
            self._mutated,
            self._grammar,
            self._noise,
        )

    def output(self, canary: str = "") -> str:
        """One output.

        Args:
            canary: A word that is put somewhere into it, to be looked for where it must not turn up again.
        """
        rng = self._rng
        text = self._kinds[int(rng.random() * len(self._kinds))]()
        if rng.random() < self._long_share:
            piece = rng.choice(_PIECES)
            place = rng.randrange(len(text) + 1)
            text = f"{text[:place]}{piece * (rng.randrange(1, 1_000_000) // len(piece))}{text[place:]}"
        if rng.random() < 0.5:
            return canary + text
        place = int(rng.random() * (len(text) + 1))
        return f"{text[:place]}{canary}{text[place:]}"

    def _words(self, most: int) -> str:
        rng = self._rng
        return " ".join(rng.choices(_PIECES, k=int(rng.random() * (most + 1))))

    def _plain(self) -> str:
        return self._rng.choice(("Mira plays", "1 + 1", "who?", "x", "2 ** 9", "colour; number", ""))

    def _value(self, schema: dict[str, Any]) -> Any:
        """A value that mostly fits a JSON schema."""
        rng, kind = self._rng, schema.get("type")
        if rng.random() < 0.1:
            return rng.choice((None, True, -1, 1e300, 10**30, [], {}, [[]], "\ud800", self._words(4), {"a": [None]}))
        if kind == "array":
            return [self._value(schema.get("items", {})) for _ in range(int(rng.triangular(0, 5, 1)))]
        if kind == "integer":
            return rng.randrange(-2, 12)
        if kind == "number":
            return rng.uniform(-2, 12)
        if "enum" in schema:
            return rng.choice(schema["enum"])
        return self._words(3) if rng.random() < 0.3 else self._plain()

    def _call(self) -> str:
        rng = self._rng
        spec = rng.choice(self._tools)
        properties: dict[str, Any] = spec.parameters.get("properties", {})
        arguments: Any = {name: self._value(schema) for name, schema in properties.items() if rng.random() < 0.95}
        if rng.random() < 0.05:
            arguments["more"] = self._words(2)
        if rng.random() < 0.05:
            arguments = json.dumps(arguments)
        name = spec.name if rng.random() < 0.97 else self._words(2)
        return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=rng.random() < 0.5)

    def _well_formed(self) -> str:
        rng = self._rng
        parts = [f"<mem>{self._words(6) if rng.random() < 0.5 else self._plain()}</mem>"]
        if rng.random() < 0.4:
            parts.append(f"<think>{self._words(4)}</think>")
        if rng.random() < 0.8:
            parts.append(f"<tool_call>{self._call()}</tool_call>")
        else:
            parts.append(f"<answer>{'; '.join(self._plain() for _ in range(rng.randrange(1, 5)))}</answer>")
        return "".join(parts)

    def _mutated(self) -> str:
        rng, text = self._rng, self._well_formed()
        for _ in range(rng.randrange(1, 4)):
            start = rng.randrange(len(text) + 1)
            end = min(len(text), start + rng.randrange(12))
            how = rng.randrange(5)
            if how == 0:
                text = text[:start] + text[end:]
            elif how == 1:
                text = text[:end] + text[start:]
            elif how == 2:
                text = text[:start] + rng.choice(_PIECES) + text[start:]
            elif how == 3:
                text = text[:start] + text[start:end].swapcase() + text[end:]
            else:
                text = text[start:] + text[:start]
        return text

    def _grammar(self) -> str:
        """Blocks that are nested, crossed, doubled, left open or closed twice."""
        rng = self._rng
        parts = []
        for _ in range(rng.randrange(1, 8)):
            parts.append(rng.choice(_TAGS))
            if rng.random() < 0.3:
                parts.append(self._call())
            elif rng.random() < 0.5:
                parts.append(rng.choice(_PIECES))
        return "".join(parts)

    def _noise(self) -> str:
        rng = self._rng
        if rng.random() < 0.5:
            return "".join(rng.choices(_PIECES, k=rng.randrange(12)))
        top = 0x80 if rng.random() < 0.5 else 0x110000
        return "".join(chr(int(rng.random() * top)) for _ in range(rng.randrange(60)))
