"""What a model and an episode cost: parameters, FLOPs and bytes as functions of their shapes; nothing is measured here.

A multiply-add is 2 FLOPs. Per token and pass a matrix of n weights takes 2n (Kaplan et al., arXiv 2001.08361,
section 2.1); attention takes 4 x layers x query width per pair of a query and a position it sees. The base is frozen,
so a backward pass has only the gradients of the inputs, 2n, where full training has 4n; an adapter is trained, 4n (Hu
et al., arXiv 2106.09685). Saved activations follow Korthikanti et al. (arXiv 2205.05198), counted anew for the modules
of transformers and peft that are used here.

Invariant: pure functions of numbers. ``cost_check.py`` puts each beside what torch counts or the process takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mempo_env.agents.prefix_attention import MIN_QUERIES, TILE


@dataclass(frozen=True)
class ModelShape:
    """A decoder of the Llama or Qwen2 family, and the adapter on all its linear layers.

    Attributes:
        name: What it is called.
        width: Hidden size D.
        layers: Decoder layers.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        feed_forward: Width F of the gated MLP.
        vocab: Vocabulary V.
        tied: Whether the head is the embedding.
        biased: Whether query, key and value have biases (Qwen2).
        bytes: Bytes of a weight and of an activation.
        rank: Rank r of the adapter.
        adapter_bytes: Bytes of an adapter's weight; peft keeps float32 beside a bfloat16 base.
    """

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocab: int
    tied: bool
    biased: bool = False
    bytes: int = 2
    rank: int = 16
    adapter_bytes: int = 4

    @classmethod
    def of(cls, config: Any, name: str, **changes: Any) -> ModelShape:
        """From a config of transformers."""
        return cls(
            name=name,
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            feed_forward=config.intermediate_size,
            vocab=config.vocab_size,
            tied=config.tie_word_embeddings,
            biased=config.model_type == "qwen2",
            **changes,
        )

    @property
    def query_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps."""
        d, f, q, k = self.width, self.feed_forward, self.query_width, self.kv_width
        return {"q": (d, q), "k": (d, k), "v": (d, k), "o": (q, d), "gate": (d, f), "up": (d, f), "down": (f, d)}

    def layer(self, *names: str) -> int:
        """Weights of those linear maps of a layer; of all of them if none is named."""
        return sum(a * b for name, (a, b) in self.matrices.items() if not names or name in names)

    def layer_adapter(self, *names: str) -> int:
        """Adapter weights of those linear maps of a layer; of all of them if none is named."""
        return self.rank * sum(a + b for name, (a, b) in self.matrices.items() if not names or name in names)

    @property
    def body(self) -> int:
        """Weights of all layers' matrices."""
        return self.layers * self.layer()

    @property
    def adapter(self) -> int:
        """Trainable weights."""
        return self.layers * self.layer_adapter()

    @property
    def weights(self) -> int:
        """All parameters without the adapter."""
        norms = self.width * (2 * self.layers + 1)
        biases = self.layers * (self.query_width + 2 * self.kv_width) if self.biased else 0
        return self.body + (1 if self.tied else 2) * self.vocab * self.width + norms + biases

    def with_rank(self, rank: int) -> ModelShape:
        """The same with an adapter of another rank; 0: none."""
        return replace(self, rank=rank)


# config.json of Qwen/Qwen2.5-7B and of HuggingFaceTB/SmolLM2-135M-Instruct on the hub.
QWEN = ModelShape("Qwen2.5-7B", 3584, 28, 28, 4, 128, 18_944, 152_064, tied=False, biased=True)
SMOLLM2 = ModelShape("SmolLM2-135M", 576, 30, 9, 3, 64, 1536, 49_152, tied=True)


@dataclass(frozen=True)
class Work:
    """What a forward pass has to do.

    Attributes:
        tokens: Tokens that go through the layers, those of shared prefixes once.
        pairs: Pairs of a query and a position it sees, in one layer.
        outputs: Tokens whose distribution the head gives.
        prefix: Those of ``tokens`` that stand in shared prefixes.
        prefix_pairs: Those of ``pairs`` whose query does.
    """

    tokens: float = 0
    pairs: float = 0
    outputs: float = 0
    prefix: float = 0
    prefix_pairs: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def causal_pairs(tokens: float, tile: float = 1) -> float:
    """Pairs of a query and a key that are computed for a sequence.

    Args:
        tokens: Its length.
        tile: Queries that meet, together, all keys up to the last of them. 1: only what a query sees is computed;
            infinite: the whole square, as torch's counter takes a fused kernel.
    """
    if tile == 1:
        return tokens * (tokens + 1) / 2
    tile = min(tile, max(tokens, 1))
    whole, rest = divmod(tokens, tile)
    return tile**2 * whole * (whole + 1) / 2 + rest * tokens


def row(prompt: float, output: float, before: float = 0, *, tile: float = 1) -> Work:
    """A row, or its rest after a shared prefix.

    Args:
        prompt: Prompt tokens, without the prefix.
        output: Output tokens.
        before: Tokens of the prefix.
        tile: See ``causal_pairs``.
    """
    n = prompt + output
    return Work(n, n * before + causal_pairs(n, tile), output)


def prefix(tokens: float, *, tile: float = 1) -> Work:
    """A shared prefix in a forward pass of its own, whose keys and values the rows' pass finds in a cache."""
    pairs = causal_pairs(tokens, tile)
    return Work(tokens, pairs, 0, tokens, pairs)


def packed(model: ModelShape, shared: int, rows: int, prompt: int, output: int) -> Work:
    """A prefix and equal rows after it in one sequence, in ``prefix_attention``'s tiles, as rows are computed on a CPU.

    A row's last output token predicts nothing and is left out. The last layer has no idle parts: the prefix's tokens
    are in its products like all others.

    Args:
        model: The model; its heads decide how many queries a tile has.
        shared: Tokens of the prefix.
        rows: How many rows.
        prompt: Prompt tokens of a row, without the prefix.
        output: Output tokens of a row.
    """
    length = prompt + output - 1
    one = row(prompt, output - 1, shared, tile=tile_queries(model, length))
    suffixes = Work(rows * one.tokens, rows * one.pairs, rows * output)
    return row(shared, 0, tile=tile_queries(model, shared)) + suffixes


def tile_queries(model: ModelShape, keys: int) -> int:
    """Queries of a tile of ``prefix_attention`` that meet up to so many keys."""
    return max(MIN_QUERIES, TILE // (model.heads * max(1, keys)))


def forward_flops(model: ModelShape, work: Work, *, adapter: bool = True) -> float:
    """FLOPs of a forward pass, head included; ``adapter=False``: the reference pass of a fresh adapter."""
    trained = model.adapter if adapter else 0
    attention = 4 * model.layers * model.query_width * work.pairs
    return 2 * work.tokens * (model.body + trained) + attention + head_flops(model, work.outputs)


def head_flops(model: ModelShape, outputs: float) -> float:
    """FLOPs of the head on so many tokens, once."""
    return 2 * model.width * model.vocab * outputs


def backward_flops(
    model: ModelShape,
    work: Work,
    *,
    attention_factor: float = 2.5,
    checkpointing: bool = False,
) -> float:
    """FLOPs of a backward pass of the adapter.

    Not computed, for want of anybody who needs it: the gradient of the first layer's input, and, for prefixes, whatever
    of the last layer is neither key nor value.

    Args:
        model: The model.
        work: Of the forward pass.
        attention_factor: Of the forward pass: 2.5 where the scores are computed again (Dao, arXiv 2307.08691), 2 where
            they were kept.
        checkpointing: Whether every layer is computed a second time.
    """
    base = 2 * (work.tokens * (model.body - model.layer("q", "k", "v")))
    trained = 4 * work.tokens * model.adapter - 2 * work.tokens * 3 * model.rank * model.width
    idle = ("q", "o", "gate", "up", "down")
    unused = work.prefix * (2 * model.layer(*idle) + 4 * model.layer_adapter(*idle))
    attention = attention_factor * 4 * model.query_width * (model.layers * work.pairs - work.prefix_pairs)
    head = head_flops(model, work.outputs)  # in truth in the forward pass, whose logits are not kept for it
    again = forward_flops(model, replace(work, outputs=0)) if checkpointing else 0.0
    return base + trained - unused + attention + head + again


# Bytes ---------------------------------------------------------------------------------------------------------------


def weight_bytes(model: ModelShape) -> int:
    """Bytes of the base."""
    return model.weights * model.bytes


def training_bytes(model: ModelShape) -> int:
    """Bytes of the adapter, its gradient and AdamW's two moments, the latter in the adapter's type."""
    return 4 * model.adapter * model.adapter_bytes


def kv_bytes(model: ModelShape) -> int:
    """Bytes of keys and values of one position of one row."""
    return 2 * model.layers * model.kv_width * model.bytes


def saved_bytes(model: ModelShape, *, checkpointing: bool = False, packed: bool = False) -> int:
    """Bytes that a token of a forward pass keeps for the backward pass, in the layers; the head's not.

    Per layer: the inputs of the two norms in float32 with a scale each; queries, keys, values, output and a float32 sum
    per head of attention; gate, activated gate and up projection; what each adapter was given, and its r numbers. Where
    the adapter's type differs from the base's, peft casts that input anew for each of the seven; else query, key and
    value share one, gate and up another, and attention's output is there already.

    Args:
        model: The model.
        checkpointing: Only the layers' inputs are kept, and one layer's worth while it is computed again.
        packed: Whether the token stands in packed rows, whose attention keeps its output by heads: another storage than
            the adapter's input, too, where the types are the same.
    """
    d, f, q, k, b, r = (
        model.width, model.feed_forward, model.query_width, model.kv_width, model.bytes, model.rank,
    )  # fmt: skip
    norms = 2 * (4 * d + 4)
    attention = b * (2 * q + 2 * k) + 4 * model.heads
    gated = 3 * b * f
    shared = b * (2 * d + f + packed * q)
    given = model.adapter_bytes * (5 * d + q + f) if model.adapter_bytes != b else shared
    layer = norms + attention + gated + given + 7 * r * model.adapter_bytes
    positions = 2 * b * model.head_dim  # sine and cosine, once for all layers
    if checkpointing:
        return model.layers * b * d + layer + positions
    return model.layers * layer + positions


def slope_bytes(model: ModelShape) -> int:
    """Bytes that an output token keeps in the head: the gradient of its log-probability by its hidden state."""
    return model.width * model.bytes


def logits_bytes(model: ModelShape, outputs: float) -> float:
    """Bytes at the peak of the head: logits and their exponentials, in float32."""
    return outputs * model.vocab * 8
