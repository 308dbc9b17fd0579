"""The whole export: the folder that comes out, its graph, other families of checkpoints, and what must not be lost."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from checkpoints import TINY, make_checkpoint
from e5onnx import Encoder
from e5onnx.errors import CheckpointError, ParityError
from e5onnx.model_folder import ModelFolder
from e5onnx_export import built, reference, tokenizer_file
from e5onnx_export import export_model as export_both
from helpers import near, write_json
from texts import TEXTS

export_model = partial(export_both, precisions=["fp32"])  # int8 is tested in test_quantize.py
MODULES = ("Transformer", "Pooling", "Normalize")


def assert_same_vectors(model: Path, checkpoint: Path) -> None:
    """Compare with sentence-transformers on the checkpoint, by its defaults."""
    peer = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)
    near(Encoder(model).encode(TEXTS, prompt=""), peer.encode(TEXTS))


def test_the_graph_keeps_the_contract(sample_model: Path) -> None:
    graph = onnx.load(sample_model / "onnx/model.onnx").graph

    def signature(values: Any) -> dict[str, tuple[int, list[object]]]:
        tensors = {value.name: value.type.tensor_type for value in values}
        return {
            name: (tensor.elem_type, [axis.dim_param or axis.dim_value for axis in tensor.shape.dim])
            for name, tensor in tensors.items()
        }

    tokens = (onnx.TensorProto.INT64, ["batch", "sequence"])
    vectors = (onnx.TensorProto.FLOAT, ["batch", 384])
    assert signature(graph.input) == {"input_ids": tokens, "attention_mask": tokens}
    assert signature(graph.output) == {"sentence_embedding": vectors, "pooled_embedding": vectors}


def test_a_row_of_padding_alone_gives_zeros(sample_model: Path) -> None:
    graph = Encoder(sample_model)._graph
    ids, mask = np.array([[101, 7592, 102], [0, 0, 0]]), np.array([[1, 1, 1], [0, 0, 0]])
    for output in ("sentence_embedding", "pooled_embedding"):
        vectors = graph.run(ids, mask, output)
        np.testing.assert_array_equal(vectors[1], np.zeros(384))
        near(vectors[:1], graph.run(ids[:1], mask[:1], output), 1e-6)


def test_the_folder_holds_what_its_manifest_says(sample_model: Path) -> None:
    folder = ModelFolder.open(sample_model)
    files = {str(path.relative_to(sample_model)) for path in sample_model.rglob("*") if path.is_file()}
    assert files == {record.file for record in folder.verify()} | {"e5onnx.json"}
    assert {"onnx/model.onnx", "tokenizer.json", "config.json"} <= files
    manifest = folder.manifest
    assert manifest.checkpoint == "sentence-transformers/all-MiniLM-L6-v2"
    assert (manifest.dimension, manifest.layers, manifest.max_tokens) == (384, 6, 256)
    assert manifest.graph("fp32").parity["numpy_max_abs_difference"] < 1e-5
    assert manifest.graph("fp32").parity["pytorch_min_cosine"] > 0.99999
    assert set(manifest.tools) == {"e5onnx", "numpy", "onnx", "onnxruntime", "safetensors", "tokenizers"}


def test_transformers_reads_the_folder_too(sample_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sample_model)
    expected = Encoder(sample_model).tokenizer.tokenize(TEXTS)
    assert tokenizer(TEXTS)["input_ids"] == [text.ids.tolist() for text in expected]
    assert tokenizer.model_max_length == 256


@pytest.mark.parametrize(
    ("pooling", "modules"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, MODULES),  # as bge
        ({"pooling_mode": "mean"}, MODULES[:2]),  # as gte in some versions: vectors of any length
    ],
)
def test_other_pooling_and_modules(tmp_path: Path, pooling: dict[str, Any], modules: tuple[str, ...]) -> None:
    pooling = {"word_embedding_dimension": 48, **pooling}
    checkpoint = make_checkpoint(tmp_path / "c", **TINY, modules=modules, pooling=pooling, max_seq_length=512)
    model = export_model(checkpoint, tmp_path / "model")
    assert model.manifest.normalize is (len(modules) == 3)
    assert_same_vectors(model.path, checkpoint)


def test_a_checkpoint_saved_again_by_sentence_transformers(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", **TINY, modules=MODULES, max_seq_length=40)
    again = tmp_path / "again"
    SentenceTransformer(str(checkpoint), device="cpu", prompts={"query": "q: ", "document": "d: "}).save(str(again))
    model = export_model(again, tmp_path / "model").path
    encoder = Encoder(model)
    assert encoder.prompts == {"query": "q: ", "document": "d: "}
    assert encoder.max_tokens == 40
    peer = SentenceTransformer(str(again), device="cpu")
    texts = TEXTS[:4]
    near(encoder.encode_query(texts), peer.encode_query(texts))
    near(encoder.encode_document(texts), peer.encode_document(texts))


def test_a_bert_encoder_with_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    """As multilingual-e5-small: BERT with XLM-RoBERTa's tokenizer, whose padding id is not 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import XLMRobertaTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=300, special_tokens=specials, unk_token="<unk>", show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    checkpoint = make_checkpoint(tmp_path / "multilingual-e5-small", **TINY, modules=MODULES, max_seq_length=64)
    for path in checkpoint.glob("*token*"):
        path.unlink()
    (checkpoint / "vocab.txt").unlink()
    XLMRobertaTokenizerFast(tokenizer_object=tokenizer).save_pretrained(checkpoint)
    model = export_model(checkpoint, tmp_path / "model").path
    assert Encoder(model).prompts == {"query": "query: ", "document": "passage: "}
    with pytest.warns(UserWarning, match="cut [0-9]+ of"):
        assert_same_vectors(model, checkpoint)


def test_texts_are_lowercased_where_the_checkpoint_says_so(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", **TINY, modules=MODULES, max_seq_length=256)
    write_json(checkpoint / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": True})
    for name in ("tokenizer.json", "tokenizer_config.json"):  # a tokenizer that keeps capitals, and does not know them
        content = json.loads((checkpoint / name).read_text())
        content["do_lower_case"] = False
        if "normalizer" in content:
            content["normalizer"]["lowercase"] = False
            del content["do_lower_case"]
        write_json(checkpoint / name, content)
    model = export_model(checkpoint, tmp_path / "model").path
    assert Encoder(model).count_tokens("The Quick Brown Fox") == 6
    assert_same_vectors(model, checkpoint)


def test_half_precision_weights_are_exported_in_single_precision(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from transformers import BertModel

    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "half")
    BertModel.from_pretrained(checkpoint).half().save_pretrained(checkpoint)
    model = export_model(checkpoint, tmp_path / "model")
    assert model.manifest.graph("fp32").parity["numpy_max_abs_difference"] < 1e-5


def test_exports_are_the_same_each_time(tmp_path: Path, tiny_checkpoint: Path) -> None:
    first, second = (export_both(tiny_checkpoint, tmp_path / name).manifest for name in ("a", "b"))
    assert first == second


def test_the_fp32_fingerprint_does_not_depend_on_what_else_is_exported(tmp_path: Path, tiny_checkpoint: Path) -> None:
    alone = export_model(tiny_checkpoint, tmp_path / "fp32")
    both = export_both(tiny_checkpoint, tmp_path / "both", portable=True)
    assert both.manifest.fingerprint("fp32") == alone.manifest.fingerprint("fp32")
    assert both.manifest.files == alone.manifest.files
    tokenizer = json.loads((both.path / "tokenizer.json").read_text())
    assert (tokenizer["truncation"], tokenizer["padding"]) == (None, None)


def test_a_graph_that_differs_leaves_nothing_behind(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = reference.embed
    monkeypatch.setattr(reference, "embed", lambda *arguments: embed(*arguments) + 3e-3)
    with pytest.raises(ParityError, match="differs from the checkpoint by up to"):
        export_model(tiny_checkpoint, tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_another_tokenizer_is_noticed(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = tokenizer_file.read_tokenizer

    def read_without_lowercasing(*arguments: Any, **settings: Any) -> str:
        return read(*arguments, **settings).replace('"lowercase": true', '"lowercase": false')

    monkeypatch.setattr(built, "read_tokenizer", read_without_lowercasing)
    with pytest.raises(ParityError, match="tokenizer splits"):
        export_model(tiny_checkpoint, tmp_path / "model")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["safetensors in shards", "pickled", "pickled in shards"])
def test_weights_in_every_form_give_the_same_folder(tmp_path: Path, tiny_checkpoint: Path, form: str) -> None:
    from transformers import BertModel

    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    (checkpoint / "model.safetensors").unlink()
    size = "1MB" if "shards" in form else "1GB"
    encoder = BertModel.from_pretrained(tiny_checkpoint)
    encoder.save_pretrained(checkpoint, safe_serialization="safetensors" in form, max_shard_size=size)
    assert len(list(checkpoint.glob("*model-0*"))) == (2 if "shards" in form else 0)
    assert export_model(checkpoint, tmp_path / "a").manifest == export_model(tiny_checkpoint, tmp_path / "b").manifest


@pytest.mark.parametrize("damage", ["truncated", "missing", "lacking", "of another size"])
def test_damaged_weights_are_refused(tmp_path: Path, tiny_checkpoint: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "damaged")
    weights = checkpoint / "model.safetensors"
    if damage == "truncated":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "missing":
        weights.unlink()
    elif damage == "of another size":
        config = json.loads((checkpoint / "config.json").read_text())
        write_json(checkpoint / "config.json", {**config, "vocab_size": 40_000})
    else:
        tensors = load_file(weights)
        del tensors["encoder.layer.0.output.dense.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=str(checkpoint)) as error:
        export_model(checkpoint, tmp_path / "out/model")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_pooler_or_with_a_training_head_is_fine(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from transformers import BertForMaskedLM, BertModel

    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "head")
    torch.manual_seed(0)
    head = BertForMaskedLM.from_pretrained(checkpoint)
    head.save_pretrained(checkpoint)
    model = export_model(checkpoint, tmp_path / "model").path
    expected = BertModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    batch = AutoTokenizer.from_pretrained(checkpoint)(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        vector = expected(**batch).last_hidden_state[0].mean(0).numpy()
    near(Encoder(model).encode(TEXTS[0]), vector)
