"""What `config.json` says of the encoder, and whether it can be built from its weights or has to be traced.

A key that could change vectors in a way the built graph does not know is refused, and so is every unknown key.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5onnx.errors import CheckpointError

from .build import ACTIVATIONS
from .json_file import JsonObject
from .network import FAMILIES, Family

_MOST_LAYERS = 1000
FEWEST_TOKENS = 3  # one between the start and the end token
_VIA_OPTIMUM = "; --via optimum lets transformers read it"

# Keys that change vectors, and the values that are supported.
_SUPPORTED: dict[str, Collection[Any]] = {
    "auto_map": (),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (),
    "pruned_heads": ({},),
    "chunk_size_feed_forward": (0,),
}
_SUPPORTED_OF_FAMILIES: dict[str, Collection[Any]] = {
    "position_embedding_type": ("absolute",),
    "hidden_act": tuple(ACTIVATIONS),
    "activation": tuple(ACTIVATIONS),
}
# Keys that change nothing here: names, training, task heads, text generation, and what transformers returns.
_HARMLESS = """
    _attn_implementation _attn_implementation_autoset _name_or_path _num_labels architectures attn_implementation
    attention_dropout attention_probs_dropout_prob bad_words_ids begin_suppress_tokens bos_token_id classifier_dropout
    cls_token_id cross_attention_hidden_size decoder_start_token_id directionality diversity_penalty do_sample dropout
    dtype early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout_prob id2label initializer_range
    label2id layerdrop length_penalty mask_token_id max_length min_length model_max_length no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past
    output_scores pad_token_id pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
    pooler_type prefix problem_type qa_dropout remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id seq_classif_dropout sentence_transformers sinusoidal_pos_embds suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_weights_ tie_word_embeddings tokenizer_class
    top_k top_p torch_dtype torchscript transformers_version typical_p unk_token_id use_bfloat16 use_cache
    """.split()  # noqa: SIM905
_SIZES = """
    model_type hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size max_position_embeddings
    type_vocab_size layer_norm_eps dim n_layers n_heads hidden_dim relative_attention_num_buckets
    """.split()  # noqa: SIM905


@dataclass(frozen=True)
class EncoderConfig:
    """What `config.json` says.

    Attributes:
        config: the file.
        family: that of the encoder, if it can be built; None if it has to be traced.
        layers: number of layers.
        hidden_size: size of a hidden state.
        vocabulary: number of token ids.
        positions: the most tokens that have a position.
        why_traced: why it is not built; "" if it is.
    """

    config: JsonObject
    family: Family | None
    layers: int
    hidden_size: int
    vocabulary: int
    positions: int
    why_traced: str

    @property
    def model_type(self) -> str:
        """The name of the kind of encoder."""
        return str(self.config.content["model_type"])


def read_encoder_config(folder: Path, *, traced: bool) -> EncoderConfig:
    """Read `config.json`.

    Args:
        folder: the checkpoint.
        traced: whether to have the encoder traced whatever it is.

    Raises:
        CheckpointError: it is not there, it is damaged, or the encoder it describes is not supported.
    """
    config = JsonObject.read(folder, "config.json")
    if not config.content:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
    kind = config.get("model_type", str)
    if kind is None:
        raise CheckpointError("config.json lacks the key model_type")
    config.require(_SUPPORTED)
    known = FAMILIES.get(kind)
    why_traced = "--via optimum" if traced else "" if known else f"there is no builder for model_type {kind!r:.80}"
    family = None if why_traced else known
    if family is not None:
        _check_keys(config)

    def size(key: str, least: int = 1) -> int:
        return config.integer(known.key(key) if known else key, least=least)

    layers, hidden = size("num_hidden_layers"), size("hidden_size")
    if layers > _MOST_LAYERS:
        raise CheckpointError(f"config.json: num_hidden_layers is {layers}, more than any encoder has")
    if family is not None:
        heads = size("num_attention_heads")
        if hidden % heads:
            raise CheckpointError(
                f"config.json: the hidden size {hidden} is not a multiple of the number of attention heads, {heads}"
            )
        size("intermediate_size")
        config.integer("type_vocab_size", least=1, default=2)
        config.number("layer_norm_eps", least=0)
    positions = size("max_position_embeddings", FEWEST_TOKENS)
    if known and known.counts_from_padding:
        positions -= padding_id(config) + 1
        if positions < FEWEST_TOKENS:
            raise CheckpointError(f"config.json: max_position_embeddings leaves {positions} positions for tokens")
    return EncoderConfig(config, family, layers, hidden, size("vocab_size"), positions, why_traced)


def padding_id(config: JsonObject) -> int:
    """Return the padding id that RoBERTa's positions are counted from. MPNet's is 1 whatever its config says."""
    return 1 if config.content["model_type"] == "mpnet" else config.integer("pad_token_id", least=0, default=1)


def _check_keys(config: JsonObject) -> None:
    """Refuse keys that are not known, and values that the builder cannot write."""
    for key, value in config.content.items():
        if value is None or key in _SUPPORTED or key in _HARMLESS or key in _SIZES:
            continue
        if key not in _SUPPORTED_OF_FAMILIES:
            raise CheckpointError(f"config.json sets {key!r:.80} to {value!r:.80}, which is not known{_VIA_OPTIMUM}")
        if value not in _SUPPORTED_OF_FAMILIES[key]:
            only = ", ".join(map(str, _SUPPORTED_OF_FAMILIES[key]))
            raise CheckpointError(f"config.json: {key} is {value!r:.80}; the builder knows {only}{_VIA_OPTIMUM}")
