"""The way of every other encoder: transformers loads it, optimum traces it, onnxruntime optimises the graph.

Needs the extra `optimum`. Knows no network: the operators are those of the encoder's PyTorch code, and what onnxruntime
fuses by itself.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from optimum.exporters.onnx import export
from optimum.exporters.tasks import TasksManager

from e5onnx.errors import CheckpointError, in_one_line

from .build import OPSET
from .checkpoint import Checkpoint
from .folder import save_with_weights
from .head import append_head
from .pytorch import PyTorchEncoder

_IR_VERSION = 8
"""As in built graphs: onnxruntime would write its own, which older releases cannot read."""
_TRACED_TOKENS = 16
_INPUTS = ("input_ids", "attention_mask")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Slower on a CPU than what they replace; those of attention and embeddings would also hide products from int8.
_UNWANTED = [
    "AttentionFusion",
    "BiasGeluFusion",
    "EmbedLayerNormFusion",
    "MatMulAddFusion",
    "SkipLayerNormFusion",
]


class Traced:
    """A checkpoint whose encoder is traced."""

    tools: ClassVar[Sequence[str]] = ("onnx", "optimum-onnx", "torch", "transformers", "tokenizers", "onnxruntime")
    """The packages whose versions may matter."""

    def __init__(self, source: Checkpoint) -> None:
        """Load encoder and tokenizer, and trace the encoder.

        Raises:
            CheckpointError: they are damaged, or optimum cannot trace the encoder.
        """
        self._source = source
        self._pytorch = PyTorchEncoder(source)
        self._dense = tuple(layer.read() for layer in source.dense)
        self._encoder = trace_encoder(self._pytorch.encoder, source.max_tokens.value)
        self._optimized = optimized(self._encoder)

    @property
    def how(self) -> str:
        """Say which way this is, and why."""
        return f"Tracing the encoder with optimum ({self._source.encoder.why_traced})"

    def save_tokenizer(self, folder: Path) -> None:
        """Write `tokenizer.json`, and what transformers needs to load it as the checkpoint's."""
        with tempfile.TemporaryDirectory() as temporary:
            self._pytorch.tokenizer.save_pretrained(temporary)
            for file in _TOKENIZER_FILES:
                if (saved := Path(temporary, file)).is_file():
                    (folder / file).write_bytes(saved.read_bytes())

    def fp32(self) -> onnx.ModelProto:
        """Return the graph for onnxruntime."""
        return self._with_head(self._optimized)

    def portable(self) -> onnx.ModelProto:
        """Return the graph in standard ONNX operators."""
        return self._with_head(self._encoder)

    def int8(self, token_ids: Sequence[NDArray[np.int32]], advance: Callable[[int, int], object]) -> onnx.ModelProto:
        """Return the graph in int8; `advance` gets how many inputs of linear layers are done, and of how many."""
        from .quantize_traced import quantize_encoder

        return self._with_head(quantize_encoder(self._optimized, token_ids, advance))

    def references(self) -> dict[str, Callable[[str, NDArray[np.int32]], NDArray[Any]]]:
        """Return PyTorch: the encoder before it was traced."""
        return {"pytorch": self._pytorch.embed}

    def _with_head(self, encoder: onnx.ModelProto) -> onnx.ModelProto:
        source = self._source
        model = onnx.ModelProto()
        model.CopyFrom(encoder)
        append_head(model, source.pooling.value, source.encoder.hidden_size, source.dimension.value, self._dense)
        return model


def trace_encoder(encoder: Any, max_tokens: int) -> onnx.ModelProto:
    """Return the ONNX graph of an encoder that transformers has loaded.

    Inputs `input_ids` and `attention_mask`, int64 `[batch, sequence]`; output `last_hidden_state`, float32
    `[batch, sequence, hidden_size]`. Token types are zero.

    Raises:
        CheckpointError: optimum cannot trace it, or the graph needs other inputs.
    """
    kind = type(encoder).__name__
    for name, table in encoder.named_parameters():
        if name.endswith("token_type_embeddings.weight") and len(table) == 1:  # optimum traces with types 0 and 1
            table.data = table.data.repeat(2, 1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # TracerWarnings of branches on shapes; the finished graph is compared with the encoder at many shapes
        warnings.simplefilter("ignore")
        path = Path(folder, "encoder.onnx")
        try:
            config = TasksManager.get_exporter_config_constructor(
                "onnx", model=encoder, task="feature-extraction", library_name="transformers"
            )(encoder.config)
            shape = {"batch_size": 2, "sequence_length": min(_TRACED_TOKENS, max_tokens)}
            export(encoder, config, path, opset=OPSET, input_shapes=shape)
        except Exception as error:  # optimum, transformers and torch raise almost anything
            raise CheckpointError(f"optimum cannot trace {kind}: {in_one_line(error)}") from error
        model = onnx.load(path)
    graph = model.graph
    inputs = {value.name for value in graph.input}
    unknown = inputs - {*_INPUTS, "token_type_ids"}
    missing = {*_INPUTS} - inputs
    if unknown or missing:
        raise CheckpointError(
            f"the traced graph of {kind} has the inputs {', '.join(sorted(inputs))}; it must have "
            f"{' and '.join(_INPUTS)}, and may have token_type_ids"
        )
    if "last_hidden_state" not in {value.name for value in graph.output}:
        raise CheckpointError(f"the traced graph of {kind} has no output last_hidden_state")
    if "token_type_ids" in inputs:  # one for all tokens: onnxruntime then looks it up once, as it optimises
        graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.int64), "token_type_ids"))
    del graph.input[:]
    del graph.value_info[:]
    axes = ["batch", "sequence"]
    graph.input.extend(helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in _INPUTS)
    model.ir_version = _IR_VERSION
    return model


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph after onnxruntime's own optimisation: the runtime loads graphs with optimisation off."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        save_with_weights(copy, before)
        options = onnxruntime.SessionOptions()
        # the highest level that does not depend on the processor
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(after)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "after.weights")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(
            str(before), options, providers=["CPUExecutionProvider"], disabled_optimizers=_UNWANTED
        )
        result = onnx.load(after)
    domains = [opset for opset in result.opset_import if opset.domain in ("", "com.microsoft")]  # it names all it knows
    del result.opset_import[:]
    result.opset_import.extend(domains)
    result.ir_version = _IR_VERSION
    return result
