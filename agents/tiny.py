"""A tiny Qwen2 with a word-level tokenizer and a chat template, built in place from a seed.

It takes the path of a large model: a byte-level fast tokenizer, ``save_pretrained``, ``models.load_model``. One word is
one token, with its leading space; tags, frequent pieces of JSON and the field names of a prompt are one token each;
whatever else a text holds falls back to single bytes, so every string is covered and there is no unknown token.

Invariants:
    * a known word has one form, with a leading space: the tokenizer adds the space at the start of a piece or a line;
    * ``build_tiny`` is a function of its arguments and leaves the global generators as they were.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mempo_env.actions import TAGS, FormatErrorKind
from mempo_env.budgets import BRIEF
from mempo_env.errors import UserError
from mempo_env.prompts import build_instructions

from .expert import UNKNOWN
from .settings import TinyConfig

PAD, END = "<|endoftext|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")
# One control token opens a message and names its role, one closes it: two tokens a message.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_WORD = r"[\p{L}\p{N}_]+(?:['’-][\p{L}\p{N}_]+)*"
_PLAIN_WORD = re.compile(r"\w+(?:['’-]\w+)*")
# Text of the protocol that is one token wherever it stands.
_CALLS = (
    '{"name": "search", "arguments": {"queries": ["',
    '", "',
    '"]}}',
    '{"name": "calculator", "arguments": {"expression": "',
    '"}}',
)
_FIELDS = ("Task:", "\nMemory:", "Memory:", "\nResult:", "Result:", "\nBudget:", "Budget:")
_COUNTS = (" tool calls,", " turns left")
_ERRORS = ("Format error (", *(f"{kind}):" for kind in FormatErrorKind))
# Large enough that one distance takes most of the weight at head size 32, small enough to be unlearned.
_LOOK_BACK_SCALE = 6.0
_EXPERT_WORDS = (UNKNOWN, "ask", "answer", "now")  # what the scripted expert writes beside notes and answers
_NUMBERS = tuple(map(str, range(17)))  # a budget's counts
# Words of the messages that follow a malformed output; such turns would cost a token per letter otherwise.
_MESSAGE_WORDS = (
    "The the output had neither nor answer was never closed by empty tool call not valid JSON arguments "
    "must be a an is one object name There no such use search calculator No calls are left now Begin with "
    "nothing else kept has it takes queries expression list of strings string that at least query and "
    "none may most"
)


def build_tiny(
    seed: int, vocabulary: Sequence[str], config: TinyConfig | None = None, *, phrases: Sequence[str] = ()
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """Builds model and tokenizer.

    Args:
        seed: Seed of the weights.
        vocabulary: Words, case as given; single ASCII signs may be among them and are known anyway.
        config: The model's shape.
        phrases: Pieces of text that are one token wherever they stand, beside those of the protocol.

    Returns:
        The float32 model in evaluation mode, on the CPU, and its tokenizer.

    Raises:
        UserError: An entry of the vocabulary is no word.
    """
    config = config or TinyConfig()
    tokenizer = build_tokenizer(vocabulary, config.max_positions, phrases)
    qwen = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.max_positions,
        initializer_range=config.init_range,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(qwen).float()
    _look_back(model, config)
    return model.eval(), tokenizer


def _look_back(model: Qwen2ForCausalLM, config: TinyConfig) -> None:
    """Sets query and key biases of the first layer so that head h starts out attending h + 1 tokens back.

    Rotary positions turn a pair of constant vectors into a score that depends on the distance alone. With key bias (s,
    0) and query bias (s cos(n f), -s sin(n f)) in the plane of frequency f the score is s^2 cos((distance - n) f), so
    that the sum over frequencies is highest at distance n.
    """
    attention, size = model.model.layers[0].self_attn, config.width // config.heads
    half = size // 2
    frequency = config.rope_theta ** (-torch.arange(half) / half)  # (D / 2,)
    with torch.no_grad():
        for head in range(config.look_back):
            start, angle = head * size, (head + 1) * frequency  # (D / 2,)
            attention.k_proj.bias[start : start + size] = 0.0
            attention.k_proj.bias[start : start + half] = _LOOK_BACK_SCALE
            attention.q_proj.bias[start : start + half] = _LOOK_BACK_SCALE * angle.cos()
            attention.q_proj.bias[start + half : start + size] = -_LOOK_BACK_SCALE * angle.sin()


def build_tokenizer(
    vocabulary: Sequence[str], max_length: int = 2048, phrases: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Builds the word-level tokenizer.

    Args:
        vocabulary: Words.
        max_length: Recorded as the model's limit.
        phrases: Pieces of text that are one token wherever they stand.

    Returns:
        A byte-level tokenizer of transformers with a chat template.

    Raises:
        UserError: An entry is no word.
    """
    known = dict.fromkeys([*_NUMBERS, *_MESSAGE_WORDS.split(), *_EXPERT_WORDS, *vocabulary])
    words = [word for word in known if not (len(word) == 1 and word.isascii() and not word.isalnum())]
    for word in words:
        if not _PLAIN_WORD.fullmatch(word):
            raise UserError(f"{word!r} cannot be in the tiny model's vocabulary: give single words, without spaces")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [byte_level.pre_tokenize_str(f" {word}")[0][0] for word in words]  # in GPT-2's byte alphabet
    # `ignore_merges`: a piece that is in the vocabulary is one token; there are no merges, so others become bytes.
    backend = Tokenizer(
        models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], ignore_merges=True)
    )
    # Adds a space at the start of the piece and of each line, and takes it back where no word follows.
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend(" "),
            normalizers.Replace("\n", "\n "),
            normalizers.Replace(Regex(r"(?<=\A|\n) (?![\p{L}\p{N}_])"), ""),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(rf" ?{_WORD}|[\s\S]"), "isolated"), byte_level]
    )
    backend.decoder = decoders.ByteLevel()
    # normalized=False: matched in the text as it came, so that every piece between them is normalised on its own.
    control = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    plain = [bracket for tag in TAGS.values() for bracket in (f"<{tag}>", f"</{tag}>")]
    plain += [build_instructions((), BRIEF, style="terse"), *_CALLS, *_FIELDS, *_COUNTS, *_ERRORS, *phrases]
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in dict.fromkeys(plain)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
