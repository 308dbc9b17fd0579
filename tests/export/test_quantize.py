"""int8: that no weights can saturate, that texts stay independent, and how near to fp32 the vectors are."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from e5onnx import Encoder, InputValueError
from e5onnx.errors import ParityError
from e5onnx_export import export, export_model, validate
from e5onnx_export.calibration import split_texts
from e5onnx_export.quantize import Activations, quantize_layer, quantize_weights
from helpers import near
from texts import TEXTS

_LAYERS = 6


@pytest.fixture(scope="module")
def int8(sample_model: Path) -> Encoder:
    return Encoder(sample_model, precision="int8")


def assert_cannot_saturate(weights: NDArray[np.int8]) -> None:
    """Check what `vpmaddubsw` adds: two neighbouring products with unsigned activations, in 16 signed bits."""
    assert weights.dtype == np.int8
    even = weights[: len(weights) // 2 * 2].astype(int)
    pairs = even.reshape(-1, 2, weights.shape[1])
    assert 255 * np.maximum(pairs, 0).sum(axis=1).max(initial=0) < 2**15
    assert 255 * np.minimum(pairs, 0).sum(axis=1).min(initial=0) >= -(2**15)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 9),
    spread=st.floats(0.0, 6.0),
)
def test_weights_never_saturate_and_are_as_good_as_rounding(
    seed: int, inputs: int, outputs: int, spread: float
) -> None:
    random = np.random.default_rng(seed)
    weights = random.standard_normal((inputs, outputs)) * np.exp(spread * random.standard_normal((inputs, 1)))
    weights[random.random(weights.shape) < 0.2] = 0
    rows = (random.standard_normal((400, inputs)) + 2 * random.standard_normal(inputs)).astype(np.float32)
    steps, scales, lost = quantize_weights(weights.astype(np.float32), rows, np.float32(0.05))
    assert_cannot_saturate(steps)
    differences = rows @ (steps * scales - weights) + lost
    largest = np.abs(rows).max(axis=0) @ np.abs(weights)
    assert (np.abs(differences.mean(axis=0)) <= 1e-4 * largest).all()
    rounding = rows @ (np.rint(weights / scales) * scales - weights)
    rounding -= rounding.mean(axis=0)
    assert np.square(differences).sum() <= 1.3 * np.square(rounding).sum() + 1e-6 * np.square(rows @ weights).sum()


def test_the_outputs_of_mean_activations_are_kept() -> None:
    random = np.random.default_rng(0)
    sizes = {
        "query": (32, 36),
        "key": (32, 36),
        "value": (32, 32),
        "attention_output": (32, 32),
        "intermediate": (32, 96),
        "output": (96, 32),
    }
    weights = {}
    for name, (inputs, outputs) in sizes.items():
        weights[f"{name}_weight"] = (random.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        weights[f"{name}_bias"] = random.standard_normal(outputs).astype(np.float32)
    rows = {size: (random.standard_normal((500, size)) + 3).astype(np.float32) for size in (32, 96)}
    attended = rows[32] @ weights["value_weight"]  # as if every token attended to itself alone
    seen = {"hidden": rows[32], "attended": attended, "attention_normed": rows[32], "activated": rows[96]}
    means = {name: values.mean(axis=0) for name, values in seen.items()}
    ranges = {name: Activations(values, values.min(axis=0), values.max(axis=0)) for name, values in seen.items()}
    tensors = quantize_layer(weights, ranges)

    def product(row: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        result: NDArray[np.float32] = row @ (tensors[f"{name}_weight"] * tensors[f"{name}_weight_scale"])
        return result

    hidden = means["hidden"] * tensors["hidden_smoothing"]
    found = {
        "query": product(hidden, "query"),
        "attention_output": product(product(hidden, "value"), "attention_output"),
        "intermediate": product(means["attention_normed"] * tensors["attention_normed_smoothing"], "intermediate"),
        "output": product(means["activated"] * tensors["activated_smoothing"], "output"),
    }
    sources = {
        "query": "hidden",
        "attention_output": "attended",
        "intermediate": "attention_normed",
        "output": "activated",
    }
    for name, row in found.items():
        wanted = means[sources[name]] @ weights[f"{name}_weight"]
        assert np.abs(row - wanted).max() > 0.01
        near(row + tensors[f"{name}_bias"], wanted + weights[f"{name}_bias"], 1e-3)


def test_the_graph_of_the_sample_is_int8_throughout(sample_model: Path) -> None:
    graph = onnx.inliner.inline_local_functions(onnx.load(sample_model / "onnx/model_int8.onnx")).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["MatMulIntegerToFloat"] == 6 * _LAYERS
    assert operators["QuantizeLinear"] == 4 * _LAYERS
    assert operators["MatMul"] == 1  # the mean
    assert operators["Add"] == 3 * _LAYERS + 1  # the mask and two residuals; positions. Biases are in the products
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulIntegerToFloat":
            assert_cannot_saturate(tensors[node.input[1]])
    assert sum(value.nbytes for value in tensors.values() if value.dtype == np.float32) < 1_000_000


@settings(deadline=None, max_examples=20)
@given(others=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12), text=st.sampled_from(TEXTS))
def test_a_text_does_not_depend_on_its_batch(int8: Encoder, others: list[str], text: str) -> None:
    alone = int8.encode(text)
    together = int8.encode([*others, text])
    near(together[-1], alone, 1e-6)


def test_vectors_do_not_depend_on_threads_or_padding(sample_model: Path, int8: Encoder) -> None:
    single = Encoder(sample_model, precision="int8", threads=1)
    expected = int8.encode(TEXTS)
    near(single.encode(TEXTS), expected, 1e-6)
    ids = int8.tokenizer.tokenize(TEXTS[:1])[0].ids
    for length in (len(ids) + 1, 100, 256):
        input_ids = np.full((1, length), 7)  # padding may hold any token
        input_ids[0, : len(ids)] = ids
        mask = (np.arange(length) < len(ids)).astype(np.int64)[None]
        padded = int8._graph.run(input_ids, mask)
        near(padded[0], expected[0], 1e-6)


def test_fidelity_on_stsb_and_passages(sample_model: Path, int8: Encoder, data: Path) -> None:
    with (data / "stsb/test.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    passages: list[str] = []
    with (data / "passages/mixed_open_licence.jsonl").open(encoding="utf-8") as lines:
        for passage in map(json.loads, lines):
            if passage["tokens"] <= 250 and len(passages) < 100:
                passages.append(passage["text"])
    texts = [row[column] for column in ("sentence1", "sentence2") for row in rows]
    quantized = int8.encode(texts + passages)
    exact = Encoder(sample_model).encode(texts + passages)
    cosines = np.einsum("ij,ij->i", quantized, exact)
    assert cosines.mean() >= 0.998
    assert cosines.min() >= 0.988
    first, second = quantized[: len(rows)], quantized[len(rows) : len(texts)]
    correlation = spearmanr((first * second).sum(1), [float(row["score"]) for row in rows]).statistic
    assert correlation == pytest.approx(0.8203, abs=0.002)


def test_the_manifest_says_how_near_to_fp32_it_is(int8: Encoder) -> None:
    calibration = int8.manifest.graph("int8").calibration
    assert calibration
    assert calibration["file_sha256"] == hashlib.sha256(export._CALIBRATION.read_bytes()).hexdigest()
    assert calibration["texts"] > 3 * calibration["texts_held_back"] > 300
    parity = int8.manifest.graph("int8").parity
    assert parity["texts"] >= 200
    assert 0.985 < parity["min_cosine"] < parity["mean_cosine"] < 1
    assert int8.fingerprint != int8.manifest.fingerprint("fp32")


def test_the_bytes_do_not_depend_on_threads(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = tmp_path / "texts.txt"
    calibration.write_text("\n".join(export._CALIBRATION.read_text("utf-8").splitlines()[:50]), "utf-8")
    graphs = []
    for threads in (1, 2):
        monkeypatch.setenv("E5ONNX_THREADS", str(threads))
        folder = tmp_path / str(threads)
        with threadpool_limits(threads, user_api="blas"):
            export_model(tiny_checkpoint, folder, precisions=["int8"], calibration=calibration)
        graphs.append([(folder / "onnx" / file).read_bytes() for file in ("model_int8.onnx", "model_int8.onnx_data")])
    assert graphs[0] == graphs[1]


def test_own_texts_a_single_precision_and_the_refusal(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = tmp_path / "texts.txt"
    calibration.write_text("\n".join(f"{number} apples and pears." for number in range(40)))
    folder = export_model(tiny_checkpoint, tmp_path / "m", precisions=["int8"], calibration=calibration).path
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == ["model_int8.onnx", "model_int8.onnx_data"]
    assert Encoder(folder, precision="int8").encode("pears").shape == (48,)
    with pytest.raises(InputValueError, match="it has 'int8'"):
        Encoder(folder)

    monkeypatch.setattr(validate, "LEAST_MEAN_COSINE", 0.9999999)
    with pytest.raises(ParityError, match=r"mean cosine [01]\.\d+.*--calibration.*--force"):
        export_model(tiny_checkpoint, tmp_path / "bad", calibration=calibration)
    assert not (tmp_path / "bad").exists()
    forced = export_model(tiny_checkpoint, tmp_path / "bad", calibration=calibration, force=True).manifest
    assert {graph.precision for graph in forced.graphs} == {"fp32", "int8"}


@pytest.mark.parametrize("content", [None, b"", b"only\na\nfew\n", b"\xff\xfe" * 100])
def test_unusable_calibration_texts_are_refused_first(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "texts.txt").write_bytes(content)
    with pytest.raises(InputValueError, match="texts"):
        export_model("sample", tmp_path / "m", calibration=tmp_path / "texts.txt")


def test_precisions_are_checked(tmp_path: Path) -> None:
    for precisions in ([], ["fp16"]):
        with pytest.raises(InputValueError, match="one or more of fp32, int8"):
            export_model("sample", tmp_path / "m", precisions=precisions)  # type: ignore[arg-type]


def test_no_text_is_used_for_both_fitting_and_measuring() -> None:
    fitted, held_back = split_texts([f"Text {number}. It has two sentences." for number in range(50)])
    assert {"Text 1. It has two sentences.", "Text 2."} <= set(fitted)
    assert {"Text 8. It has two sentences.", "Text 8."} <= set(held_back)
    assert not {text for text in fitted if "Text" in text} & set(held_back)
