"""A checkpoint's weights, and the ONNX graph that optimum traces from them."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from optimum.exporters.onnx import export
from optimum.exporters.tasks import TasksManager
from safetensors import SafetensorError
from tokenizers import normalizers
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging

from .checkpoint import Checkpoint, CheckpointError

OPSET = 18


def load_encoder(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint's `BertModel` in float32, without its pooler, or say what is wrong with the weights."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # unused weights of a training head are none of the user's concern
    try:
        encoder, report = BertModel.from_pretrained(
            checkpoint.folder,
            add_pooling_layer=False,
            attn_implementation="eager",  # plain MatMul and Softmax in the graph
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"the weights in {checkpoint.folder} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        raise CheckpointError(
            f"the weights in {checkpoint.folder} lack {len(report['missing_keys'])} tensors of a BERT encoder, "
            f"{sorted(report['missing_keys'])[0]} among them"
        )
    return encoder.eval()


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint's tokenizer, one of the Rust library `tokenizers`, without truncation and padding."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, use_fast=True, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the tokenizer in {checkpoint.folder} cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"the tokenizer in {checkpoint.folder} has no form that `tokenizers` can run")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    normalizer = backend.normalizer
    if checkpoint.lowercase and (normalizer is None or "A" in normalizer.normalize_str("A")):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([normalizer] if normalizer else [])])
    tokenizer.model_max_length = checkpoint.max_tokens.value
    return tokenizer


def trace_encoder(encoder: Any, folder: Path) -> onnx.ModelProto:
    """Return the ONNX graph of a BERT encoder, traced by optimum by way of a file in `folder`.

    Inputs `input_ids`, `attention_mask` and `token_type_ids`, int64 `[batch, sequence]`; output `last_hidden_state`,
    float32 `[batch, sequence, dimension]`.
    """
    config = TasksManager.get_exporter_config_constructor(
        "onnx", model=encoder, task="feature-extraction", library_name="transformers"
    )(encoder.config)
    path = folder / "traced.onnx"
    with warnings.catch_warnings():
        # TracerWarnings of branches on shapes; the finished graph is compared with the encoder at many shapes.
        warnings.simplefilter("ignore")
        export(encoder, config, path, opset=OPSET)
    model = onnx.load(path)
    path.unlink()
    return model
