"""The way of encoders that `build.py` knows: from the weights to each graph, without torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from . import reference
from .build import FUSED, PORTABLE, Variant, build_encoder, embedding_weights, flattened, layer_weights
from .checkpoint import Checkpoint
from .encoder_config import padding_id
from .head import append_head
from .network import read_network
from .tokenizer_file import read_tokenizer
from .weights import Weights


class Built:
    """A checkpoint whose graphs are built from its weights."""

    tools: ClassVar[Sequence[str]] = ("onnx", "safetensors", "tokenizers", "onnxruntime", "numpy")
    """The packages whose versions may matter."""

    def __init__(self, source: Checkpoint) -> None:
        """Read weights and tokenizer.

        Raises:
            CheckpointError: they are damaged, or do not belong to their configuration.
        """
        encoder = source.encoder
        self._source = source
        self.network = read_network(encoder.config, partial(Weights, source.folder), padding_id(encoder.config))
        self._dense = tuple(layer.read() for layer in source.dense)
        self._tokenizer = read_tokenizer(
            source.folder,
            encoder.model_type,
            source.tokenizer_args,
            lowercase=source.lowercase,
            vocabulary=encoder.vocabulary,
        )

    @property
    def how(self) -> str:
        """Say which way this is."""
        return "Building the graph from the weights"

    def save_tokenizer(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        (folder / "tokenizer.json").write_text(self._tokenizer, encoding="utf-8", newline="")

    def fp32(self) -> onnx.ModelProto:
        """Return the graph for onnxruntime."""
        return self._with_head(self._encoder(FUSED))

    def portable(self) -> onnx.ModelProto:
        """Return the graph in standard ONNX operators."""
        model = flattened(self._with_head(self._encoder(PORTABLE)))
        onnx.checker.check_model(model, full_check=True)
        return model

    def int8(self, token_ids: Sequence[NDArray[np.int32]], advance: Callable[[int, int], object]) -> onnx.ModelProto:
        """Return the graph in int8; `advance` gets how many layers are done, and of how many."""
        from .quantize import INT8, quantize

        return self._with_head(build_encoder(self.network, INT8, *quantize(self.network, token_ids, advance)))

    def references(self) -> dict[str, Callable[[str, NDArray[np.int32]], NDArray[Any]]]:
        """Return numpy in float64, and PyTorch where it and transformers are installed."""
        source = self._source

        def embed(text: str, ids: NDArray[np.int32]) -> NDArray[Any]:
            vector = reference.embed(self.network, ids, source.pooling.value, self._dense, source.dimension.value)
            return np.asarray(vector)

        if any(importlib.util.find_spec(package) is None for package in ("torch", "transformers")):
            return {"numpy": embed}
        from .pytorch import PyTorchEncoder

        return {"numpy": embed, "pytorch": PyTorchEncoder(source).embed}

    def _encoder(self, variant: Variant) -> onnx.ModelProto:
        layers = [layer_weights(self.network, layer, variant) for layer in self.network.layers]
        return build_encoder(self.network, variant, embedding_weights(self.network), layers)

    def _with_head(self, model: onnx.ModelProto) -> onnx.ModelProto:
        source = self._source
        append_head(model, source.pooling.value, self.network.hidden_size, source.dimension.value, self._dense)
        return model
