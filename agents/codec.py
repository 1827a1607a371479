"""Text to ids and back: the only place that calls a tokenizer.

The chat template is rendered once per sequence of roles, with private sentinels in place of the contents, and split at
them. Control tokens are looked for in the template's own pieces alone; the text between two of them, contents included,
is encoded with their recognition off. So a chat without control tokens in its contents gets the ids that the template
gives it, and one with them gets no other control tokens.

Invariants:
    * only the template emits control tokens: no content, whatever it says, contributes one;
    * ``encode_chat`` is a function of roles and contents alone, and a content that occurs again gets the same ids;
    * ``token_bytes`` of ids joined are the bytes of their text; control tokens have none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from mempo_env.errors import UserError

from .contexts import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTINEL = "\ue000mempo-content-{index}\ue001"
_PROBE = "\t \nprobe {index}\n \t"
# What templates do to a content before they place it; the first that explains the rendered text is taken.
_TREATMENTS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)
_CACHED_TEXTS = 4096  # a long prompt costs some 20 kB


@dataclass(frozen=True)
class _Content:
    """The place of a message's content, and what the template does to it."""

    index: int
    treat: Callable[[str], str]


_Run = tuple["str | _Content", ...]
"""Text between two control tokens: the template's own and contents."""
_Layout = tuple["int | _Run", ...]
"""A template for one sequence of roles: control tokens and the runs between them."""


class ChatCodec:
    """Encodes chats and texts for one tokenizer, and knows the bytes of every token.

    A template that strips white space around contents is followed. One that rewrites contents depending on what they
    say (cutting earlier thoughts out, say) is not: contents stand in the prompt as they are.

    Args:
        tokenizer: A fast, byte-level tokenizer of transformers with a chat template that has a system role.
        extra_eos_ids: Ids that end a turn beside the one the template closes assistant messages with, such as those of
            a model's generation config.

    Raises:
        UserError: The tokenizer is none of this; the message says what to do.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, extra_eos_ids: Sequence[int] = ()) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "this tokenizer has no chat template; use an instruction-tuned model, or set tokenizer.chat_template"
            )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError("this is a slow tokenizer; use a model with a tokenizer.json (a fast tokenizer)")
        self.tokenizer = tokenizer
        self._template_backend = _private_copy(backend, control_as_text=False)
        self._content_backend = _private_copy(backend, control_as_text=True)
        self.control_ids = frozenset(
            index for index, token in backend.get_added_tokens_decoder().items() if token.special
        ) | frozenset(tokenizer.all_special_ids)
        self._bytes = _byte_table(backend, self.control_ids)
        self._layouts: dict[tuple[str, ...], _Layout] = {}
        self._encode_cached = lru_cache(maxsize=_CACHED_TEXTS)(self._encode_content)
        self._refuse_leaks()
        self.eos_ids = self._find_eos(extra_eos_ids)
        pad_id = tokenizer.pad_token_id
        self.pad_id: int = self.eos_ids[0] if pad_id is None else int(pad_id)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a chat up to where the assistant begins to speak.

        Args:
            messages: ``role`` and ``content`` each.

        Returns:
            The prompt's ids.

        Raises:
            UserError: The template refuses these roles, or rewrites contents.
        """
        roles = tuple(message["role"] for message in messages)
        layout = self._layouts.get(roles)
        if layout is None:
            layout = self._layouts[roles] = self._lay_out(roles)
        ids: list[int] = []
        for part in layout:
            if isinstance(part, int):
                ids.append(part)
            else:
                texts = (one if isinstance(one, str) else one.treat(messages[one.index]["content"]) for one in part)
                ids += self._encode_cached("".join(texts))
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Encodes a text without control tokens, whatever it says."""
        return list(self._encode_cached(text))

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id; control tokens, and ids beyond the tokenizer's vocabulary, have none."""
        return [self._bytes[index] if 0 <= index < len(self._bytes) else b"" for index in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without control tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(ids)).decode("utf-8", errors="replace")

    @property
    def vocabulary_size(self) -> int:
        """Number of ids the tokenizer knows; a model's output may be wider."""
        return len(self._bytes)

    def _encode_content(self, text: str) -> tuple[int, ...]:
        # Lone surrogates have no UTF-8 form; the environment writes them as "?" too.
        plain = text.encode("utf-8", errors="replace").decode("utf-8")
        return tuple(self._content_backend.encode(plain, add_special_tokens=False).ids)

    def _lay_out(self, roles: tuple[str, ...]) -> _Layout:
        sentinels = [_SENTINEL.format(index=index) for index in range(len(roles))]
        pieces: list[str] = []
        rest = self._render(roles, sentinels)
        for role, sentinel in zip(roles, sentinels, strict=True):
            if rest.count(sentinel) != 1:
                raise UserError(
                    f"the chat template shows the content of a '{role}' message {rest.count(sentinel)} times, not once "
                    f"and in order (roles: {', '.join(roles)}); use a model whose template places every message"
                )
            piece, rest = rest.split(sentinel)
            pieces.append(piece)
        pieces.append(rest)
        layout: list[int | _Run] = []
        run: list[str | _Content] = []
        treatments: list[Callable[[str], str]] = [*self._treatments(roles, pieces), str]
        for index, (piece, treat) in enumerate(zip(pieces, treatments, strict=True)):
            for part in self._split_control(piece):
                if isinstance(part, str):
                    run.append(part)
                else:
                    layout += [tuple(run), part]
                    run = []
            if index < len(roles):
                run.append(_Content(index, treat))
        return (*layout, tuple(run))

    def _split_control(self, piece: str) -> list[int | str]:
        """Control tokens of a template's piece, and the text around them."""
        encoded = self._template_backend.encode(piece, add_special_tokens=False)
        parts: list[int | str] = []
        position = 0
        for index, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if index in self.control_ids:
                parts += [piece[position:start], index]
                position = end
        return [*parts, piece[position:]]

    def _treatments(self, roles: tuple[str, ...], pieces: Sequence[str]) -> tuple[Callable[[str], str], ...]:
        """Finds out, with contents in white space, what the template does to each content."""
        probes = [_PROBE.format(index=index) for index in range(len(roles))]
        rest = self._render(roles, probes)
        found: list[Callable[[str], str]] = []
        if not rest.startswith(pieces[0]):
            raise UserError("the chat template changes with the contents; use a model with a plain chat template")
        rest = rest.removeprefix(pieces[0])
        for probe, piece in zip(probes, pieces[1:], strict=True):
            for treat in _TREATMENTS:
                if rest.startswith(treat(probe) + piece):
                    found.append(treat)
                    rest = rest.removeprefix(treat(probe) + piece)
                    break
            else:
                raise UserError("the chat template rewrites message contents; use a model whose template keeps them")
        return tuple(found)

    def _render(self, roles: Sequence[str], contents: Sequence[str], prompt: bool = True) -> str:
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        try:
            rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # templates raise what they like: jinja2's TemplateError, TypeError, KeyError
            raise UserError(
                f"the chat template cannot show messages with the roles {', '.join(roles)}: {error}; "
                "use a model whose template takes a system message"
            ) from error
        return str(rendered)

    def _find_eos(self, extra: Sequence[int]) -> tuple[int, ...]:
        """The control token that closes an assistant message, then the tokenizer's and the given ones."""
        roles, sentinel = ("user", "assistant"), _SENTINEL.format(index=1)
        tail = self._render(roles, (_SENTINEL.format(index=0), sentinel), prompt=False).partition(sentinel)[2]
        closing = [part for part in self._split_control(tail) if isinstance(part, int)][:1]
        own = self.tokenizer.eos_token_id
        ids = dict.fromkeys([*closing, *([] if own is None else [int(own)]), *map(int, extra)])
        if not ids:
            raise UserError(
                "this tokenizer has no end-of-turn token: set tokenizer.eos_token to the one of the model's tuning"
            )
        return tuple(ids)

    def _refuse_leaks(self) -> None:
        for index in sorted(self.control_ids):
            name = self._template_backend.id_to_token(index) or ""
            if self.control_ids.intersection(self._encode_content(name)):
                raise UserError(
                    f"this tokenizer turns the text {name!r} into a control token and cannot be told not to; "
                    "use a model whose tokenizer can (Qwen2.5, Llama 3, SmolLM2)"
                )


class CodecTokenCounter:
    """Counts tokens as a policy's tokenizer does, for an environment (``mempo_env.tokens.TokenCounter``).

    Args:
        codec: The policy's.
        name: What the environment's arguments record; by default the tokenizer's name.
    """

    def __init__(self, codec: ChatCodec, name: str = "") -> None:
        self._codec = codec
        self.name = name or f"tokenizer:{getattr(codec.tokenizer, 'name_or_path', '') or 'unnamed'}"

    def count(self, text: str) -> int:
        """Number of tokens of ``text``."""
        return len(self._codec._encode_cached(text))

    def truncate(self, text: str, n: int) -> str:
        """A prefix of ``text`` that has at most ``n`` tokens, as long as the tokenizer's cuts allow."""
        if self.count(text) <= n:
            return text
        ends = [end for _, end in self._codec._content_backend.encode(text, add_special_tokens=False).offsets[:n]]
        end = max(ends, default=0)
        while end and self.count(text[:end]) > n:  # a prefix may split its last word into more tokens than the whole
            end -= 1
        return text[:end]


def _private_copy(backend: Tokenizer, *, control_as_text: bool) -> Tokenizer:
    """A copy whose switches nobody else turns."""
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = control_as_text
    return copy


def _byte_table(backend: Tokenizer, control_ids: frozenset[int]) -> list[bytes]:
    """The bytes of every id, for a byte-level tokenizer.

    Raises:
        UserError: It is of another kind, whose tokens have no bytes of their own.
    """
    state: dict[str, Any] = json.loads(backend.to_str())
    decoder = state.get("decoder") or {}
    kinds = {decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", ()))}
    if kinds - {"Sequence"} != {"ByteLevel"}:
        raise UserError(
            f"this tokenizer is not byte-level (its decoder is {decoder.get('type', 'missing')}); supported are "
            "byte-level ones, such as those of Qwen2.5, Llama 3, SmolLM2 and GPT-2"
        )
    to_byte = _byte_decoder()
    added = {token["id"]: token["content"] for token in state["added_tokens"]}
    table = [b""] * (max(backend.get_vocab(with_added_tokens=True).values()) + 1)
    for token, index in backend.get_vocab(with_added_tokens=True).items():
        if index in control_ids:
            continue
        if index in added:
            table[index] = added[index].encode()  # added tokens stand for their text
        elif all(sign in to_byte for sign in token):
            table[index] = bytes(to_byte[sign] for sign in token)
        else:
            raise UserError(f"token {index} ({token!r}) of this tokenizer is not in the byte-level alphabet")
    return table


def _byte_decoder() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: those that print are themselves, the others follow U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
