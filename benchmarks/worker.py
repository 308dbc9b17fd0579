"""One program, loaded and kept alive: it takes requests as JSON lines on standard input and answers on standard output.

Runs in the program's own environment (`python worker.py PROGRAM MODEL THREADS`), so it imports nothing of this
project's except where the program is e5onnx. Each program is called through its public interface, with its defaults
save for the number of threads. What the defaults mean for batches is in README.md.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Encode = Callable[["str | list[str]", str], Any]
"""Texts and their kind ("query" or "document") -> vectors, one row each."""

_PREFIXES = {"query": "query: ", "document": "passage: "}
_PACKAGES = (
    *("e5onnx", "onnxruntime", "tokenizers", "numpy", "torch", "transformers", "sentence-transformers", "optimum"),
    *("optimum-onnx", "optimum-intel", "openvino", "fastembed", "ctranslate2"),
)


def load_e5onnx(model: str, threads: int) -> Encode:
    """The project itself, which adds the prefixes."""
    from e5onnx import Encoder

    encoder = Encoder(model, threads=threads)
    methods = {"query": encoder.encode_query, "document": encoder.encode_document}
    return lambda texts, kind: methods[kind](texts)


def load_torch_fp32(model: str, threads: int) -> Encode:
    """sentence-transformers as installed."""
    return _sentence_transformer(model, threads)


def load_torch_bf16(model: str, threads: int) -> Encode:
    """sentence-transformers with weights in bfloat16."""
    return _sentence_transformer(model, threads, model_kwargs={"torch_dtype": "bfloat16"})


def load_onnx(model: str, threads: int) -> Encode:
    """The ONNX backend of sentence-transformers with the graph as exported."""
    return _sentence_transformer_onnx(model, threads, "model.onnx")


def load_onnx_o3(model: str, threads: int) -> Encode:
    """The ONNX backend with the graph that `export_optimized_onnx_model(model, "O3")` wrote."""
    return _sentence_transformer_onnx(model, threads, "model_O3.onnx")


def load_openvino(model: str, threads: int) -> Encode:
    """The OpenVINO backend of sentence-transformers; OpenVINO picks bfloat16 by itself where the CPU has it."""
    options = {"ov_config": {"INFERENCE_NUM_THREADS": str(threads)}}
    return _sentence_transformer(model, threads, backend="openvino", model_kwargs=options)


def load_openvino_fp32(model: str, threads: int) -> Encode:
    """The same, held to float32."""
    options = {"ov_config": {"INFERENCE_NUM_THREADS": str(threads), "INFERENCE_PRECISION_HINT": "f32"}}
    return _sentence_transformer(model, threads, backend="openvino", model_kwargs=options)


def load_fastembed(model: str, threads: int) -> Encode:
    """Fastembed with a custom model read from a local folder."""
    import numpy as np

    # not in this environment, only in the worker's
    from fastembed import TextEmbedding  # type: ignore[import-not-found]
    from fastembed.common.model_description import ModelSource, PoolingType  # type: ignore[import-not-found]

    name = "benchmark/e5-small-v2"
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf=name),
        dim=384,
        model_file="onnx/model.onnx",
    )
    embedding = TextEmbedding(name, threads=threads, specific_model_path=model)
    return lambda texts, kind: np.stack(list(embedding.embed(_prefixed(texts, kind))))


def load_ctranslate2(model: str, threads: int) -> Encode:
    """CTranslate2's Encoder, with tokenising, batching by length and mean pooling as its users write them."""
    import ctranslate2  # type: ignore[import-not-found]  # not in this environment, only in the worker's
    import numpy as np
    from tokenizers import Tokenizer

    encoder = ctranslate2.Encoder(model, device="cpu", compute_type="float32", intra_threads=threads)
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)

    def encode(texts: str | list[str], kind: str) -> Any:
        ids = [encoding.ids for encoding in tokenizer.encode_batch(_prefixed(texts, kind))]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        vectors = np.empty((len(ids), 384), np.float32)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            hidden = np.asarray(encoder.forward_batch([ids[row] for row in rows]).last_hidden_state)
            for row, states in zip(rows, hidden, strict=True):
                mean = states[: len(ids[row])].mean(axis=0)
                vectors[row] = mean / np.linalg.norm(mean)
        return vectors

    return encode


PROGRAMS: dict[str, Callable[[str, int], Encode]] = {
    "e5onnx": load_e5onnx,
    "sentence-transformers-torch": load_torch_fp32,
    "sentence-transformers-torch-bf16": load_torch_bf16,
    "sentence-transformers-onnx": load_onnx,
    "sentence-transformers-onnx-O3": load_onnx_o3,
    "sentence-transformers-openvino": load_openvino,
    "sentence-transformers-openvino-fp32": load_openvino_fp32,
    "fastembed": load_fastembed,
    "ctranslate2": load_ctranslate2,
}


def _sentence_transformer_onnx(model: str, threads: int, file_name: str) -> Encode:
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    options = {
        "file_name": f"onnx/{file_name}",
        "provider": "CPUExecutionProvider",
        "session_options": session_options,
    }
    return _sentence_transformer(model, threads, backend="onnx", model_kwargs=options)


def _sentence_transformer(model: str, threads: int, **options: Any) -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    encoder = SentenceTransformer(model, device="cpu", local_files_only=True, **options)
    return lambda texts, kind: encoder.encode(texts, prompt=_PREFIXES[kind], normalize_embeddings=True)


def _prefixed(texts: str | list[str], kind: str) -> list[str]:
    return [_PREFIXES[kind] + text for text in ([texts] if isinstance(texts, str) else texts)]


def _peak_megabytes() -> float:
    """This process's own peak; `ru_maxrss` would also count the parent's at the time of the fork."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def _versions() -> dict[str, str]:
    installed = {each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions()}
    return {"python": platform.python_version(), **{name: installed[name] for name in _PACKAGES if name in installed}}


def _answer(request: dict[str, Any], encode: Encode) -> dict[str, Any]:
    """Time one call on all texts, or one call on each; write the vectors of the former if asked to."""
    texts, kind = request["texts"], request["kind"]
    seconds = []
    for call in texts if request["each"] else [texts]:
        start = time.perf_counter()
        vectors = encode(call, kind)
        seconds.append(time.perf_counter() - start)
    if request.get("save"):
        import numpy as np

        np.save(request["save"], np.asarray(vectors, dtype=np.float32))
    return {"seconds": seconds, "peak_megabytes": _peak_megabytes()}


def _serve(answers: TextIO) -> None:
    program, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    start = time.perf_counter()
    encode = PROGRAMS[program](model, threads)
    loaded = {"load_seconds": time.perf_counter() - start, "versions": _versions()}
    answers.write(json.dumps(loaded) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line), encode)) + "\n")


if __name__ == "__main__":
    # Libraries print: what they print goes to standard error, the answers to the real standard output.
    answers_to_harness = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _serve(answers_to_harness)
