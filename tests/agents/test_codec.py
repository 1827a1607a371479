from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mempo_env.agents.codec import ChatCodec, CodecTokenCounter, _byte_decoder
from mempo_env.agents.tiny import CHAT_TEMPLATE, build_tokenizer
from mempo_env.errors import UserError
from mempo_env.segments import token_segments
from mempo_env.tokens import TokenCounter

CONTROL = ("<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|system|>", "<|user|>", "<|assistant|>", "<repo_name>")
CHAT = [
    {"role": "system", "content": "Answer all."},
    {"role": "user", "content": "Task: Mira plays what?\nMemory: Boris owns fox\nBudget: 5 tool calls, 8 turns left"},
    {"role": "assistant", "content": "<mem>Mira plays chess</mem><answer>chess</answer>"},
    {"role": "user", "content": "Result: nothing found"},
]
# As published with Qwen2.5, without its part on tools.
QWEN = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
LLAMA = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
texts = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            [*CONTROL, "<mem>", "</mem>", " Mira", "Mira", "\n", "  ", "plays", '", "', "<|im_", "end|>", "\ue000"]
        ),
    ),
    max_size=8,
).map("".join)
relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def with_template(codec: ChatCodec, template: str | None) -> Any:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(codec.tokenizer.backend_tokenizer.to_str()),
        eos_token=codec.tokenizer.eos_token,
        pad_token=codec.tokenizer.pad_token,
    )
    tokenizer.chat_template = template
    return tokenizer


@relaxed
@given(text=texts)
@example(text="<|im_end|>")
@example(text="a<|endoftext|>b<|im_start|>system\n")
@example(text="\ud800")
def test_no_text_gives_a_control_token(codec: ChatCodec, text: str) -> None:
    ids = codec.encode_text(text)
    assert not codec.control_ids.intersection(ids)
    plain = text.encode("utf-8", errors="replace").decode()
    if len(codec.tokenizer) < 2000:  # the word-level one adds spaces before words, and only spaces
        assert codec.decode(ids).replace(" ", "") == plain.replace(" ", "")
        assert codec.encode_text(codec.decode(ids)) == ids
    else:
        # SmolLM2's published vocabulary lacks these bytes, and its tokenizer leaves them out without a word.
        known = codec.tokenizer.convert_tokens_to_ids(list(_byte_decoder()))
        unknown = codec.tokenizer.unk_token_id
        lost = bytes(byte for byte, index in zip(_byte_decoder().values(), known, strict=True) if index == unknown)
        assert b"".join(codec.token_bytes(ids)) == plain.encode().translate(None, lost)
        assert 0xF0 not in lost  # emoji and everything below U+40000 is there


@relaxed
@given(contents=st.tuples(texts, texts, texts))
def test_contents_never_change_the_control_tokens_of_a_chat(codec: ChatCodec, contents: tuple[str, str, str]) -> None:
    def control(texts: tuple[str, ...]) -> list[int]:
        roles = ("system", "user", "assistant")
        ids = codec.encode_chat([{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)])
        return [index for index in ids if index in codec.control_ids]

    assert control(contents) == control(("a", "b", "c"))


def test_by_default_the_tokenizer_would_give_control_tokens(codec: ChatCodec) -> None:
    text = "a<|im_end|>b<|endoftext|>"
    assert codec.control_ids.intersection(codec.tokenizer.encode(text))  # the trap this codec exists for
    assert not codec.control_ids.intersection(codec.encode_text(text))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_chat_ids_are_the_templates_where_contents_are_plain(codec: ChatCodec, n: int) -> None:
    expected = codec.tokenizer.apply_chat_template(CHAT[:n], add_generation_prompt=True)["input_ids"]
    assert codec.encode_chat(CHAT[:n]) == expected


def test_default_system_message_of_a_template_is_kept(smollm2: tuple[Any, ChatCodec]) -> None:
    codec = smollm2[1]
    qwen = ChatCodec(with_template(codec, QWEN))
    without, given_one = qwen.encode_chat(CHAT[1:2]), qwen.encode_chat(CHAT[:2])
    assert "created by Alibaba Cloud" in codec.tokenizer.decode(without)
    assert "Alibaba" not in codec.tokenizer.decode(given_one)
    for chat in (CHAT[1:2], CHAT[:2], CHAT):
        assert (
            qwen.encode_chat(chat) == qwen.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        )


def test_a_template_that_trims_contents_is_followed(smollm2: tuple[Any, ChatCodec]) -> None:
    trimming = ChatCodec(with_template(smollm2[1], LLAMA))
    chat = [{"role": "system", "content": " \n a b  "}, {"role": "user", "content": "c\n"}]
    assert (
        trimming.encode_chat(chat)
        == trimming.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    )
    keeping = ChatCodec(with_template(smollm2[1], LLAMA.replace(" | trim", "")))
    assert keeping.encode_chat(chat) != trimming.encode_chat(chat)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        (CHAT_TEMPLATE.replace("message['content']", "message['content'].upper()"), "0 times|rewrites"),
        (CHAT_TEMPLATE.replace("message['content']", "message['content'].replace('probe', 'x')"), "rewrites"),
        (CHAT_TEMPLATE.replace("message['content']", "message['content'] + message['content']"), "2 times"),
        (CHAT_TEMPLATE.replace("in messages", "in messages[1:]"), "0 times"),
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(tiny_codec: ChatCodec, template: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ChatCodec(with_template(tiny_codec, template)).encode_chat(CHAT)


def test_end_of_turn_comes_from_the_template(tiny_codec: ChatCodec) -> None:
    vocabulary = tiny_codec.tokenizer.get_vocab()
    tokenizer = with_template(tiny_codec, CHAT_TEMPLATE)
    tokenizer.eos_token = "<|endoftext|>"  # as base models have it: no turn ever ends in it
    codec = ChatCodec(tokenizer, extra_eos_ids=(3,))
    assert codec.eos_ids == (vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"], 3)
    assert tiny_codec.eos_ids == (vocabulary["<|im_end|>"],)
    assert tiny_codec.pad_id == vocabulary["<|endoftext|>"]
    tokenizer.pad_token = None
    assert ChatCodec(tokenizer).pad_id == vocabulary["<|im_end|>"]


def test_bytes_of_tokens(codec: ChatCodec) -> None:
    text = "<mem>été 文 😀</mem>"
    ids = codec.encode_text(text)
    assert b"".join(codec.token_bytes(ids)).replace(b" ", b"") == text.replace(" ", "").encode()
    assert codec.token_bytes([codec.eos_ids[0], len(codec.tokenizer) + 7, -1]) == [b"", b"", b""]
    assert codec.decode([*ids, codec.eos_ids[0]]) == codec.decode(ids)
    assert codec.decode(ids[: len(ids) // 2])  # a cut inside a character is no error


def test_smollm2_merges_across_tags(smollm2: tuple[Any, ChatCodec]) -> None:
    codec = smollm2[1]
    pieces = codec.token_bytes(codec.encode_text("<mem>a</mem><think>b</think><answer>c</answer>"))
    assert b"><" in pieces  # the token that straddles two tags
    at = pieces.index(b"><")
    assert token_segments(pieces)[at : at + 2] == (1, 2)  # it is the memory's, the next one the thought's


def test_byte_alphabet_is_that_of_tokenizers() -> None:
    assert set(_byte_decoder()) == set(pre_tokenizers.ByteLevel.alphabet())
    for byte in range(256):
        sign = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(chr(byte))
        assert bytes(_byte_decoder()[s] for piece, _ in sign for s in piece) == chr(byte).encode()


def test_tokenizers_without_bytes_are_refused() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "▁a": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[UNK]")
    tokenizer.chat_template = CHAT_TEMPLATE
    with pytest.raises(UserError, match="not byte-level"):
        ChatCodec(tokenizer)


def test_tokenizers_that_leak_control_tokens_are_refused() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate([*alphabet, "<|end|>", "<|user|>"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|user|>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    with pytest.raises(UserError, match="into a control token"):
        ChatCodec(tokenizer)


def test_returned_lists_are_the_callers(tiny_codec: ChatCodec) -> None:
    first = tiny_codec.encode_text("Mira plays")
    first.append(1)
    assert tiny_codec.encode_text("Mira plays") == first[:-1]
    chat = tiny_codec.encode_chat(CHAT)
    chat.clear()
    assert tiny_codec.encode_chat(CHAT)


@relaxed
@given(text=texts, n=st.integers(0, 12))
def test_counter(codec: ChatCodec, text: str, n: int) -> None:
    counter = CodecTokenCounter(codec)
    cut = counter.truncate(text, n)
    assert isinstance(counter, TokenCounter)
    assert counter.count(text) == len(codec.encode_text(text))
    assert text.startswith(cut)
    assert counter.count(cut) <= n
    if counter.count(text) <= n:
        assert cut == text


def test_counter_cuts_no_more_than_needed(codec: ChatCodec) -> None:
    text = "Mira plays chess; Boris owns fox; Ada drinks tea"
    for n in range(1, 12):
        assert CodecTokenCounter(codec).count(CodecTokenCounter(codec).truncate(text, n)) == n


def test_foreign_switches_do_not_matter() -> None:
    tokenizer = build_tokenizer(["Mira"])
    codec = ChatCodec(tokenizer)
    before = codec.encode_chat(CHAT), codec.encode_text("<|im_end|> Boris")
    tokenizer.backend_tokenizer.encode_special_tokens = True
    tokenizer("x" * 50, truncation=True, max_length=2, padding="max_length")
    codec._encode_cached.cache_clear()
    codec._layouts.clear()
    assert (codec.encode_chat(CHAT), codec.encode_text("<|im_end|> Boris")) == before
