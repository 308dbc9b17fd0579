"""The checkpoint in PyTorch, by transformers: what exported graphs are compared with where both are installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import normalizers
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

from e5onnx.errors import CheckpointError, ParityError, in_one_line

from .checkpoint import Checkpoint

_ACTIVATIONS = {
    "identity": torch.nn.Identity(),
    "tanh": torch.nn.Tanh(),
    "relu": torch.nn.ReLU(),
    "gelu": torch.nn.GELU(),
    "sigmoid": torch.nn.Sigmoid(),
}


class PyTorchEncoder:
    """The encoder of a checkpoint, its tokenizer and the modules after it, as sentence-transformers would run them."""

    def __init__(self, source: Checkpoint) -> None:
        """Load them.

        Raises:
            CheckpointError: a file is damaged, or the tokenizer works differently from the runtime's.
        """
        self._source = source
        self.encoder = load_encoder(source)
        self.tokenizer = load_tokenizer(source)
        self._dense = [(layer.read(), _ACTIVATIONS[layer.activation]) for layer in source.dense]

    def embed(self, text: str, ids: NDArray[np.int32]) -> NDArray[Any]:
        """Return the vector of a text before normalisation, written independently of `head.py`.

        Raises:
            CheckpointError: the encoder fails.
            ParityError: the checkpoint's tokenizer gives other token ids than `ids`.
        """
        source = self._source
        encoded = self.tokenizer(text, truncation=True, max_length=source.max_tokens.value, return_tensors="pt")
        if encoded["input_ids"][0].tolist() != ids.tolist():
            raise ParityError(f"the exported tokenizer splits {text[:60]!r} differently from the checkpoint's")
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            try:
                hidden = self.encoder(**inputs).last_hidden_state[0]
            except (IndexError, RuntimeError) as error:  # such as fewer positions than config.json lets expect
                raise CheckpointError(
                    f"the encoder fails on a text of {len(ids)} tokens in PyTorch: {in_one_line(error)}; a smaller "
                    "--max-tokens may help"
                ) from error
            vector = _pool(hidden, source.pooling.value)
            for layer, activation in self._dense:
                weight = torch.from_numpy(np.ascontiguousarray(layer.weight.T))
                vector = activation(torch.nn.functional.linear(vector, weight, torch.from_numpy(layer.bias)))
        return np.asarray(vector.numpy()[: source.dimension.value])


def load_encoder(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint's encoder in float32, without its pooler; a CheckpointError says what is wrong."""
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # it warns of the unused weights of a training head
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        # whatever config.json says: these change what is returned, not what is computed
        config.return_dict = True
        config.torchscript = False
        config.output_hidden_states = config.output_attentions = False
        encoder, report = AutoModel.from_pretrained(
            checkpoint.folder,
            config=config,
            attn_implementation="eager",  # plain MatMul and Softmax in the graph
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # damaged files make transformers and pickle raise almost anything
        raise CheckpointError(f"the weights in {checkpoint.folder} cannot be loaded: {in_one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
    missing = sorted(name for name in report["missing_keys"] if "pooler." not in name)  # it is not used
    if missing:
        raise CheckpointError(
            f"the weights in {checkpoint.folder} lack {len(missing)} of the encoder's tensors, such as {missing[0]}"
        )
    for name, tensor in encoder.state_dict().items():
        if "pooler." not in name and not tensor.isfinite().all():
            raise CheckpointError(f"the weights in {checkpoint.folder} are damaged: {name} holds NaN or infinity")
    return encoder.eval()


def load_tokenizer(checkpoint: Checkpoint) -> Any:
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
        raise CheckpointError(f"{where} cannot be loaded: {in_one_line(error)}") from error
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
    if largest >= checkpoint.encoder.vocabulary:
        raise CheckpointError(
            f"{where} has token ids up to {largest}, but the encoder has only {checkpoint.encoder.vocabulary} "
            "(vocab_size in config.json): they do not belong together"
        )
    tokenizer.model_max_length = checkpoint.max_tokens.value
    return tokenizer


def _pool(hidden: Any, pooling: str) -> Any:
    if pooling == "weightedmean":
        weights = torch.arange(1, len(hidden) + 1, dtype=hidden.dtype)
        return weights @ hidden / weights.sum()
    pooled = {
        "mean": hidden.mean(0),
        "mean_sqrt_len_tokens": hidden.sum(0) / len(hidden) ** 0.5,
        "cls": hidden[0],
        "lasttoken": hidden[-1],
        "max": hidden.max(0).values,
    }
    return pooled[pooling]
