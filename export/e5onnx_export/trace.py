"""Loads a checkpoint's weights and tokenizer, and lets optimum trace the encoder's ONNX graph."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from optimum.exporters.onnx import export
from optimum.exporters.tasks import TasksManager
from tokenizers import normalizers
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging

from e5onnx.errors import CheckpointError

from .checkpoint import Checkpoint

OPSET = 18
_TRACED_TOKENS = 16


def load_encoder(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint's `BertModel` in float32, without its pooler; a CheckpointError says what is wrong."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of the unused weights of a training head
    try:
        encoder, report = BertModel.from_pretrained(
            checkpoint.folder,
            add_pooling_layer=False,
            attn_implementation="eager",  # plain MatMul and Softmax in the graph
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            # whatever config.json says: these change what is returned, not what is computed
            return_dict=True,
            torchscript=False,
            output_hidden_states=False,
            output_attentions=False,
        )
    except Exception as error:  # damaged files make transformers and pickle raise almost anything
        raise CheckpointError(f"the weights in {checkpoint.folder} cannot be loaded: {_in_one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        raise CheckpointError(
            f"the weights in {checkpoint.folder} lack {len(report['missing_keys'])} of the encoder's tensors, such as "
            f"{sorted(report['missing_keys'])[0]}"
        )
    for name, tensor in encoder.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"the weights in {checkpoint.folder} are damaged: {name} holds NaN or infinity")
    return encoder.eval()


def load_tokenizer(checkpoint: Checkpoint, encoder: Any) -> Any:
    """Return the checkpoint's tokenizer, with truncation and padding turned off.

    Raises:
        CheckpointError: it is damaged, makes ids that `encoder` does not have, or needs what the runtime cannot do.
    """
    where = f"the tokenizer in {checkpoint.folder}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.folder, use_fast=True, local_files_only=True, **checkpoint.tokenizer_args
        )
        probe = tokenizer("")
    except Exception as error:  # a damaged file makes transformers raise almost anything
        raise CheckpointError(f"{where} cannot be loaded: {_in_one_line(error)}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{where} cannot be run by the library `tokenizers`")
    for setting in ("padding_side", "truncation_side"):
        if getattr(tokenizer, setting) != "right":
            raise CheckpointError(f"{where} has {setting} {getattr(tokenizer, setting)!r}; only 'right' is supported")
    if "attention_mask" not in probe:
        raise CheckpointError(f"{where} makes no attention_mask (model_input_names), which is not supported")
    if tokenizer.chat_template:
        raise CheckpointError(f"{where} has a chat template, which is not supported")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    normalizer = backend.normalizer
    if checkpoint.lowercase and (normalizer is None or "A" in normalizer.normalize_str("A")):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([normalizer] if normalizer else [])])
    largest = max([*backend.get_vocab().values(), *probe["input_ids"]], default=0)
    if largest >= encoder.config.vocab_size:
        raise CheckpointError(
            f"{where} has token ids up to {largest}, but the encoder has only {encoder.config.vocab_size} "
            "(vocab_size in config.json): they do not belong together"
        )
    tokenizer.model_max_length = checkpoint.max_tokens.value
    return tokenizer


def trace_encoder(encoder: Any, folder: Path) -> onnx.ModelProto:
    """Return the ONNX graph of a BERT encoder, which optimum traces into a temporary file in `folder`.

    Inputs `input_ids`, `attention_mask` and `token_type_ids`, int64 `[batch, sequence]`; output `last_hidden_state`,
    float32 `[batch, sequence, dimension]`.
    """
    types = encoder.embeddings.token_type_embeddings.weight
    if len(types) == 1:  # optimum traces with types 0 and 1; the finished graph keeps type 0
        types.data = types.data.repeat(2, 1)
    config = TasksManager.get_exporter_config_constructor(
        "onnx", model=encoder, task="feature-extraction", library_name="transformers"
    )(encoder.config)
    path = folder / "traced.onnx"
    with warnings.catch_warnings():
        # TracerWarnings of branches on shapes; the finished graph is compared with the encoder at many shapes.
        warnings.simplefilter("ignore")
        tokens = min(_TRACED_TOKENS, encoder.config.max_position_embeddings)
        export(encoder, config, path, opset=OPSET, input_shapes={"batch_size": 2, "sequence_length": tokens})
    model = onnx.load(path)
    path.unlink()
    return model


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
