"""One program, loaded and kept alive: it takes requests as JSON lines on standard input and answers on standard output.

Runs in the program's own environment (`python worker.py PROGRAM MODEL THREADS`), so it imports nothing of this
project's except where the program uses e5onnx. Each program is called through its public interface, with its defaults
save for the number of threads. What the defaults mean for batches is in docs/benchmarks.md.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

Encode = Callable[..., Any]
"""Texts and their kind ("query", "document" or "raw") -> vectors, one row each.

A third argument is the size of batches, where users of the program choose it; None for its default."""

_PREFIXES = {"query": "query: ", "document": "passage: ", "raw": ""}
_PACKAGES = (
    *(
        "e5onnx",
        "e5onnx-kernels",
        "onnxruntime",
        "tokenizers",
        "numpy",
        "torch",
        "transformers",
        "sentence-transformers",
        "optimum",
    ),
    *("optimum-onnx", "optimum-intel", "openvino", "fastembed", "ctranslate2", "chromadb"),
    *("llama-cpp-python", "infinity-emb"),
)


def load_e5onnx(model: str, threads: int) -> Encode:
    """The project itself, which adds the prefixes."""
    return _e5onnx(model, threads, "fp32")


def load_e5onnx_int8(model: str, threads: int) -> Encode:
    """The same on its int8 graph."""
    return _e5onnx(model, threads, "int8")


def load_e5onnx_kernels_int8(model: str, threads: int) -> Encode:
    """The same with its own kernels."""
    return _e5onnx(model, threads, "int8", "kernels")


def load_e5onnx_kernels_bf16(model: str, threads: int) -> Encode:
    """The fp32 graph with the project's own kernels, which compute in bfloat16."""
    return _e5onnx(model, threads, "bf16", "kernels")


def load_e5onnx_openvino(model: str, threads: int) -> Encode:
    """The same with OpenVINO as its provider, in bfloat16 where the CPU has it."""
    return _e5onnx(model, threads, None, "openvino")


def load_e5onnx_openvino_cached(model: str, threads: int) -> Encode:
    """The same with the graph compiled by an earlier process."""
    return _e5onnx(model, threads, None, "openvino", f"{model}.compiled")


def _e5onnx(
    model: str,
    threads: int,
    precision: Literal["fp32", "int8", "bf16"] | None,
    provider: Literal["cpu", "kernels", "openvino"] = "cpu",
    compile_cache: str | None = None,
) -> Encode:
    from e5onnx import Encoder

    encoder = Encoder(model, precision=precision, provider=provider, threads=threads, compile_cache=compile_cache)
    methods = {"query": encoder.encode_query, "document": encoder.encode_document, "raw": encoder.encode}
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


def load_onnx_qint8(model: str, threads: int) -> Encode:
    """The ONNX backend with the graph that `export_dynamic_quantized_onnx_model(model, "avx512_vnni")` wrote."""
    return _sentence_transformer_onnx(model, threads, "model_qint8_avx512_vnni.onnx")


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
    return lambda texts, kind, batch_size=None: np.stack(
        list(embedding.embed(_prefixed(texts, kind), batch_size=batch_size or 256))
    )


def load_chroma(model: str, threads: int) -> Encode:
    """Chroma's default embedding function, which pads every text to 256 tokens and cuts longer ones.

    It has no option for threads: onnxruntime takes all processors.
    """
    import tempfile

    import numpy as np
    from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2

    folder = Path(tempfile.mkdtemp(), "onnx")  # a folder laid out as the one that it downloads
    folder.mkdir()
    for source in (*Path(model).glob("*.*"), Path(model, "onnx/model.onnx")):
        if source.is_file():
            (folder / source.name).symlink_to(source)
    (folder / "vocab.txt").touch()  # not read, but looked for
    function = ONNXMiniLM_L6_V2(preferred_providers=["CPUExecutionProvider"])
    function.DOWNLOAD_PATH = folder.parent
    return lambda texts, kind: np.stack(function(_prefixed(texts, kind)))


def load_ctranslate2(model: str, threads: int) -> Encode:
    """CTranslate2 in float32."""
    return _ctranslate2(model, threads, "float32")


def load_ctranslate2_int8(model: str, threads: int) -> Encode:
    """The same converted model, whose weights CTranslate2 quantises as it loads them."""
    return _ctranslate2(model, threads, "int8")


def load_llama_cpp(model: str, threads: int) -> Encode:
    """llama.cpp through llama-cpp-python, on weights in float32."""
    return _llama_cpp(f"{model}/model_f32.gguf", threads)


def load_llama_cpp_q8_0(model: str, threads: int) -> Encode:
    """The same on weights in blocks of eight bits, Q8_0."""
    return _llama_cpp(f"{model}/model_q8_0.gguf", threads)


def load_infinity(model: str, threads: int) -> Encode:
    """The engine of infinity with PyTorch; its server is in server.py."""
    import torch
    from infinity_emb import EngineArgs, SyncEngineArray  # type: ignore[import-not-found]  # only in the worker's

    torch.set_num_threads(threads)
    how = EngineArgs(model_name_or_path=model, engine="torch", device="cpu", dtype="float32", bettertransformer=False)
    engines = SyncEngineArray([how])

    def encode(texts: str | list[str], kind: str) -> Any:
        vectors, _ = engines.embed(model=how.served_model_name, sentences=_prefixed(texts, kind)).result()
        return vectors

    return encode


def load_portable_openvino(model: str, threads: int) -> Encode:
    """OpenVINO on e5onnx's portable graph, held to float32."""
    return _portable_openvino(model, threads, "f32")


def load_portable_openvino_bf16(model: str, threads: int) -> Encode:
    """The same in bfloat16."""
    return _portable_openvino(model, threads, "bf16")


class Program(NamedTuple):
    """How a program is loaded, and the modules that a script which uses it imports first."""

    load: Callable[[str, int], Encode]
    imports: tuple[str, ...]


_SENTENCE_TRANSFORMERS = ("sentence_transformers",)
_CTRANSLATE2 = ("ctranslate2", "numpy", "tokenizers")
_LLAMA_CPP = ("llama_cpp",)
_OPENVINO = ("openvino", "e5onnx")

PROGRAMS: dict[str, Program] = {
    "e5onnx": Program(load_e5onnx, ("e5onnx",)),
    "e5onnx-int8": Program(load_e5onnx_int8, ("e5onnx",)),
    "e5onnx-kernels-int8": Program(load_e5onnx_kernels_int8, ("e5onnx",)),
    "e5onnx-kernels-bf16": Program(load_e5onnx_kernels_bf16, ("e5onnx",)),
    "e5onnx-openvino": Program(load_e5onnx_openvino, ("e5onnx",)),
    "e5onnx-openvino-cached": Program(load_e5onnx_openvino_cached, ("e5onnx",)),
    "sentence-transformers-torch": Program(load_torch_fp32, _SENTENCE_TRANSFORMERS),
    "sentence-transformers-torch-bf16": Program(load_torch_bf16, _SENTENCE_TRANSFORMERS),
    "sentence-transformers-onnx": Program(load_onnx, _SENTENCE_TRANSFORMERS),
    "sentence-transformers-onnx-O3": Program(load_onnx_o3, _SENTENCE_TRANSFORMERS),
    "sentence-transformers-onnx-qint8": Program(load_onnx_qint8, _SENTENCE_TRANSFORMERS),
    "sentence-transformers-openvino": Program(load_openvino, _SENTENCE_TRANSFORMERS),
    "sentence-transformers-openvino-fp32": Program(load_openvino_fp32, _SENTENCE_TRANSFORMERS),
    "fastembed": Program(load_fastembed, ("fastembed",)),
    "chroma": Program(load_chroma, ("chromadb",)),
    "ctranslate2": Program(load_ctranslate2, _CTRANSLATE2),
    "ctranslate2-int8": Program(load_ctranslate2_int8, _CTRANSLATE2),
    "llama-cpp": Program(load_llama_cpp, _LLAMA_CPP),
    "llama-cpp-q8_0": Program(load_llama_cpp_q8_0, _LLAMA_CPP),
    "infinity": Program(load_infinity, ("infinity_emb",)),
    "openvino": Program(load_portable_openvino, _OPENVINO),
    "openvino-bf16": Program(load_portable_openvino_bf16, _OPENVINO),
}


def _ctranslate2(model: str, threads: int, compute_type: str) -> Encode:
    """CTranslate2's Encoder, with tokenising, batching by length and mean pooling as its users write them."""
    import ctranslate2  # type: ignore[import-not-found]  # not in this environment, only in the worker's
    import numpy as np
    from tokenizers import Tokenizer

    encoder = ctranslate2.Encoder(model, device="cpu", compute_type=compute_type, intra_threads=threads)
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)

    def encode(texts: str | list[str], kind: str, batch_size: int | None = None) -> Any:
        ids = [encoding.ids for encoding in tokenizer.encode_batch(_prefixed(texts, kind))]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        vectors = np.empty((len(ids), 384), np.float32)
        for start in range(0, len(order), batch_size or 32):
            rows = order[start : start + (batch_size or 32)]
            hidden = np.asarray(encoder.forward_batch([ids[row] for row in rows]).last_hidden_state)
            for row, states in zip(rows, hidden, strict=True):
                mean = states[: len(ids[row])].mean(axis=0)
                vectors[row] = mean / np.linalg.norm(mean)
        return vectors

    return encode


def _llama_cpp(file: str, threads: int) -> Encode:
    from llama_cpp import Llama  # type: ignore[import-not-found]  # not in this environment, only in the worker's

    # flash attention is llama.cpp's own choice, and twice as fast here; the package has it off
    model = Llama(file, embedding=True, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False)
    one_caller = threading.Lock()  # as llama-cpp-python's own server has: a context serves one caller at a time

    def encode(texts: str | list[str], kind: str, batch_size: int | None = None) -> Any:
        inputs = _prefixed(texts, kind)
        size = batch_size or len(inputs)
        batches = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        with one_caller:
            return [vector for batch in batches for vector in model.embed(batch, normalize=True)]

    return encode


def _portable_openvino(model: str, threads: int, precision: str) -> Encode:
    """OpenVINO's compiled model between e5onnx's tokenizer and batches: all of e5onnx but its graph and its engine."""
    import numpy as np
    import openvino

    from e5onnx import Tokenizer
    from e5onnx.batching import pad_batch, plan_batches

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    graph = openvino.Core().compile_model(f"{model}/onnx/model_portable.onnx", "CPU", settings)
    tokenizer = Tokenizer(model)
    idle: list[Any] = []  # a request serves one caller at a time; as many are made as callers there are

    def encode(texts: str | list[str], kind: str) -> Any:
        inputs = [texts] if isinstance(texts, str) else texts
        ids = [text.ids for text in tokenizer.tokenize(inputs, _PREFIXES[kind])]
        vectors = np.empty((len(ids), 384), np.float32)
        try:
            request = idle.pop()
        except IndexError:
            request = graph.create_infer_request()
        for rows in plan_batches([len(each) for each in ids]):
            input_ids, attention_mask = pad_batch([ids[row] for row in rows])
            outputs = request.infer({"input_ids": input_ids, "attention_mask": attention_mask})
            vectors[rows] = outputs["sentence_embedding"]
        idle.append(request)
        return vectors

    return encode


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
    return lambda texts, kind, batch_size=None: encoder.encode(
        texts, prompt=_PREFIXES[kind], normalize_embeddings=True, batch_size=batch_size or 32
    )


def _prefixed(texts: str | list[str], kind: str) -> list[str]:
    return [_PREFIXES[kind] + text for text in ([texts] if isinstance(texts, str) else texts)]


def _peak_megabytes() -> float:
    """This process's own peak; `ru_maxrss` would also count the parent's at the time of the fork."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def _versions() -> dict[str, str]:
    import importlib.metadata
    import platform

    names = ((each.metadata["Name"], each.version) for each in importlib.metadata.distributions())
    installed = {name.lower().replace("_", "-"): version for name, version in names}
    return {"python": platform.python_version(), **{name: installed[name] for name in _PACKAGES if name in installed}}


@functools.cache
def _threads(callers: int) -> ThreadPoolExecutor:
    """Threads that live on between requests, as a server's do."""
    return ThreadPoolExecutor(callers)


def _call_each(texts: list[str], call: Callable[[str], float], callers: int) -> list[float]:
    """Return the seconds of a call on each text; several callers begin together, each with its share of the texts."""
    if callers == 1:
        return [call(text) for text in texts]
    begin = threading.Barrier(callers)

    def calls(caller: int) -> list[float]:
        begin.wait()
        return [call(text) for text in texts[caller::callers]]

    return [seconds for share in _threads(callers).map(calls, range(callers)) for seconds in share]


def _answer(request: dict[str, Any], encode: Encode) -> dict[str, Any]:
    """Time one call on all texts, or one call on each; write the vectors of the former if asked to."""
    if request.get("versions"):
        return _versions()
    texts, kind = request["texts"], request["kind"]

    def call(inputs: str | list[str]) -> float:
        start = time.perf_counter()
        encode(inputs, kind)
        return time.perf_counter() - start

    start = time.perf_counter()
    if request["each"]:
        seconds = _call_each(texts, call, request["callers"])
    else:
        vectors = encode(texts, kind, *([request["batch_size"]] if request.get("batch_size") else []))
        seconds = [time.perf_counter() - start]
    elapsed = time.perf_counter() - start
    if request.get("save"):
        import numpy as np

        np.save(request["save"], np.asarray(vectors, dtype=np.float32))
    return {"seconds": seconds, "elapsed": elapsed, "peak_megabytes": _peak_megabytes()}


def _load(program: Program, model: str, threads: int) -> tuple[Encode, dict[str, float]]:
    """Return the loaded program, with seconds and memory. What it imports only as it loads counts as loading."""
    start = time.perf_counter()
    for module in program.imports:
        importlib.import_module(module)
    imported = time.perf_counter()
    encode = program.load(model, threads)
    return encode, {
        "import_seconds": imported - start,
        "load_seconds": time.perf_counter() - imported,
        "peak_megabytes": _peak_megabytes(),
    }


def _serve(answers: TextIO) -> None:
    program, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    encode, loaded = _load(PROGRAMS[program], model, threads)
    answers.write(json.dumps(loaded) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line), encode)) + "\n")


if __name__ == "__main__":
    # Libraries print: what they print goes to standard error, the answers to the real standard output.
    answers_to_harness = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _serve(answers_to_harness)
