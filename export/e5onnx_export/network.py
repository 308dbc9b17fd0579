"""What a BERT-like encoder consists of: sizes and weights, under the same names whatever its family calls them.

`build.py` writes it as an ONNX graph, `reference.py` computes it in numpy. Reads `config.json` and the weights, without
torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5onnx.errors import CheckpointError

from .json_file import JsonObject
from .weights import Weights

Floats = NDArray[np.float32]


class Linear(NamedTuple):
    """y = x W + b: `weight` is `[inputs, outputs]`, `bias` `[outputs]`."""

    weight: Floats
    bias: Floats


class Norm(NamedTuple):
    """Layer normalisation (Ba et al., arXiv 1607.06450): `scale` and `shift` are `[hidden_size]`."""

    scale: Floats
    shift: Floats


class Layer(NamedTuple):
    """A layer of the encoder: attention and feed-forward, each added to its input and normalised."""

    query: Linear
    key: Linear
    value: Linear
    attention_output: Linear
    attention_norm: Norm
    intermediate: Linear
    output: Linear
    output_norm: Norm


@dataclass(frozen=True)
class Network:
    """An encoder (Devlin et al., "BERT", arXiv 1810.04805).

    Attributes:
        heads: attention heads of a layer.
        epsilon: what layer normalisation adds to the variance.
        activation: of the feed-forward layer, a key of :data:`ACTIVATIONS`.
        words: `[vocabulary, hidden_size]`.
        positions: `[positions, hidden_size]`, with the embedding of token type 0 added.
        embedding_norm: normalises the sum of both.
        layers: from the first to the last.
        padding_id: RoBERTa counts positions from `padding_id + 1`, and leaves out tokens with this id; None for BERT,
            which counts them from 0.
        distance_bias: MPNet's bias of scores by the distance of key and query, from the most negative on,
            `[heads, 2 * max_tokens - 1]`; None for the others.
    """

    heads: int
    epsilon: float
    activation: str
    words: Floats
    positions: Floats
    embedding_norm: Norm
    layers: tuple[Layer, ...]
    padding_id: int | None = None
    distance_bias: Floats | None = None

    @property
    def hidden_size(self) -> int:
        """Numbers in a hidden state."""
        return int(self.words.shape[1])

    @property
    def max_tokens(self) -> int:
        """Most tokens that have a position."""
        return len(self.positions) - (0 if self.padding_id is None else self.padding_id + 1)


@dataclass(frozen=True)
class Family:
    """How a family of encoders names its weights and the keys of its `config.json`.

    Attributes:
        prefix: of all names, where the checkpoint was saved with a head for training.
        layer: of the names of a layer, with its number.
        names: of the parts of a layer, in the order of :class:`Layer`.
        keys: of `config.json` that are called otherwise than BERT's.
        has_types: whether there are embeddings of token types.
        counts_from_padding: whether positions are counted from the padding id, as in RoBERTa.
        is_relative: whether scores have MPNet's bias by distance.
    """

    prefix: str
    layer: str = "encoder.layer.{}."
    names: tuple[str, ...] = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    keys: tuple[tuple[str, str], ...] = ()
    has_types: bool = True
    counts_from_padding: bool = False
    is_relative: bool = False

    def key(self, name: str) -> str:
        """Return what this family calls a key of BERT's `config.json`."""
        return dict(self.keys).get(name, name)


FAMILIES = {
    "bert": Family("bert."),
    "roberta": Family("roberta.", counts_from_padding=True),
    "xlm-roberta": Family("roberta.", counts_from_padding=True),
    "camembert": Family("roberta.", counts_from_padding=True),
    "distilbert": Family(
        "distilbert.",
        layer="transformer.layer.{}.",
        names=(
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            "sa_layer_norm",
            "ffn.lin1",
            "ffn.lin2",
            "output_layer_norm",
        ),
        keys=(
            ("hidden_size", "dim"),
            ("num_hidden_layers", "n_layers"),
            ("num_attention_heads", "n_heads"),
            ("intermediate_size", "hidden_dim"),
            ("hidden_act", "activation"),
        ),
        has_types=False,
    ),
    "mpnet": Family(
        "mpnet.",
        names=(
            "attention.attn.q",
            "attention.attn.k",
            "attention.attn.v",
            "attention.attn.o",
            "attention.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        ),
        has_types=False,
        counts_from_padding=True,
        is_relative=True,
    ),
}
"""The families that can be built, by `model_type` of `config.json`."""

_DISTILBERT_EPSILON = 1e-12  # it is not in its config.json
_BUCKETS = 32
MAX_DISTANCE = 128
"""Tokens; MPNet puts larger distances into one bucket."""


def read_network(config: JsonObject, weights: Callable[[str], Weights], padding_id: int = 1) -> Network:
    """Return the encoder of a checkpoint.

    Args:
        config: its `config.json`, which `checkpoint.py` has looked through.
        weights: opens the weights, whose names may begin with the prefix that it is given.
        padding_id: the token id that RoBERTa's positions are counted from.

    Raises:
        CheckpointError: a tensor is missing, has another shape than `config.json` says, or holds NaN or infinity.
    """
    family = FAMILIES[config.content["model_type"]]
    tensors = weights(family.prefix)

    def size(key: str) -> int:
        return config.integer(family.key(key), least=1)

    hidden, heads, inner = size("hidden_size"), size("num_attention_heads"), size("intermediate_size")

    def linear(name: str, inputs: int, outputs: int) -> Linear:
        return Linear(tensors.take(f"{name}.weight", outputs, inputs).T, tensors.take(f"{name}.bias", outputs))

    def norm(name: str) -> Norm:
        return Norm(tensors.take(f"{name}.weight", hidden), tensors.take(f"{name}.bias", hidden))

    def layer(number: int) -> Layer:
        names = [family.layer.format(number) + name for name in family.names]
        return Layer(
            query=linear(names[0], hidden, hidden),
            key=linear(names[1], hidden, hidden),
            value=linear(names[2], hidden, hidden),
            attention_output=linear(names[3], hidden, hidden),
            attention_norm=norm(names[4]),
            intermediate=linear(names[5], hidden, inner),
            output=linear(names[6], inner, hidden),
            output_norm=norm(names[7]),
        )

    positions = tensors.take("embeddings.position_embeddings.weight", size("max_position_embeddings"), hidden)
    if family.has_types:
        types = config.integer("type_vocab_size", least=1, default=2)
        positions = positions + tensors.take("embeddings.token_type_embeddings.weight", types, hidden)[0]
    epsilon = config.number("layer_norm_eps", least=0)
    return Network(
        heads=heads,
        epsilon=_DISTILBERT_EPSILON if epsilon is None else float(epsilon),
        activation=config.content.get(family.key("hidden_act"), "gelu"),
        words=tensors.take("embeddings.word_embeddings.weight", size("vocab_size"), hidden),
        positions=positions,
        embedding_norm=norm("embeddings.LayerNorm"),
        layers=tuple(layer(number) for number in range(size("num_hidden_layers"))),
        padding_id=padding_id if family.counts_from_padding else None,
        distance_bias=_distance_bias(config, tensors, heads, len(positions) - padding_id - 1)
        if family.is_relative
        else None,
    )


def _distance_bias(config: JsonObject, tensors: Weights, heads: int, max_tokens: int) -> Floats:
    buckets = config.integer("relative_attention_num_buckets", least=1, default=_BUCKETS)
    if buckets != _BUCKETS:
        raise CheckpointError(
            f"config.json: relative_attention_num_buckets is {buckets}; only {_BUCKETS} is supported, with which "
            "transformers computes whatever config.json says"
        )
    table = tensors.take("encoder.relative_attention_bias.weight", buckets, heads)
    return table[distance_buckets(np.arange(1 - max_tokens, max_tokens), buckets)].T


def distance_buckets(distances: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """Return the bucket of each distance from query to key, as MPNet and T5 (arXiv 1910.10683) number them.

    Half of them are for keys after the query. Of each half, half are for one distance each, and the others grow
    logarithmically up to :data:`MAX_DISTANCE`.

    Example:
        >>> distance_buckets(np.array([-200, -1, 0, 1, 200]), 32).tolist()
        [15, 1, 0, 17, 31]
    """
    half, exact = buckets // 2, buckets // 4
    far = np.abs(distances)
    # rounded to float32, as in torch: on the edge of a bucket the last bit decides. Numpy's own logarithm of float32
    # depends on the processor.
    ratio = np.log(np.maximum(far, 1) / exact).astype(np.float32) / np.float32(np.log(MAX_DISTANCE / exact))
    logarithmic = exact + (ratio * np.float32(half - exact)).astype(np.int64)
    side = np.where(far < exact, far, np.minimum(logarithmic, half - 1))
    return side + np.where(distances > 0, half, 0)


def score_bias(distance_bias: Floats, tokens: int) -> Floats:
    """Return what MPNet adds to the score of each head, query and key of a text: `[heads, tokens, tokens]`."""
    places = np.arange(tokens)
    return distance_bias[:, places[None, :] - places[:, None] + distance_bias.shape[1] // 2]
