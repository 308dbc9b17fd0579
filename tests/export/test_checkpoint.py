"""What is read from a checkpoint's files, where each decision comes from, and what is refused. No weights, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints import write_json
from e5onnx.errors import E5OnnxError, InputValueError, ModelNotFoundError
from e5onnx_export.checkpoint import read_checkpoint
from e5onnx_export.json_file import CheckpointError

BERT = {"model_type": "bert", "max_position_embeddings": 512, "num_hidden_layers": 1, "hidden_size": 8}
E5_PROMPTS = {"query": "query: ", "document": "passage: "}
OLD, NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules."


def checkpoint(folder: Path, **files: Any) -> Path:
    """Write a checkpoint's JSON files; `config`, `modules`, `pooling`, `bert`, `st` and `tokenizer` name them."""
    names = {
        "config": "config.json",
        "modules": "modules.json",
        "pooling": "1_Pooling/config.json",
        "bert": "sentence_bert_config.json",
        "st": "config_sentence_transformers.json",
        "tokenizer": "tokenizer_config.json",
    }
    for name, content in {"config": BERT, **files}.items():
        if content is not None:
            write_json(folder / names[name], content)
    return folder


def modules(*types: str) -> list[dict[str, Any]]:
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    return [{"idx": i, "path": paths.get(t.rpartition(".")[2], f"{i}_X"), "type": t} for i, t in enumerate(types)]


MODULES = modules(OLD + "Transformer", OLD + "Pooling", OLD + "Normalize")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"word_embedding_dimension": 8}, "mean"),
    ],
)
def test_pooling_is_read(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    decision = read_checkpoint(checkpoint(tmp_path, modules=MODULES, pooling=config)).pooling
    assert decision.value == expected
    assert decision.source == "1_Pooling/config.json"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean_tokens pooling"),
        ({"pooling_mode_lasttoken": True}, "lasttoken pooling"),
        ({"pooling_mode": "lasttoken"}, "lasttoken pooling"),
        ({"pooling_mode_max_tokens": True}, "max_tokens pooling"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"cls \+ mean pooling"),
        ({"pooling_mode": ["mean", "max"]}, r"mean \+ max pooling"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
        (None, "1_Pooling/config.json, which modules.json names, is missing"),
    ],
)
def test_other_pooling_is_refused_by_name(tmp_path: Path, config: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_checkpoint(checkpoint(tmp_path, modules=MODULES, pooling=config))


@pytest.mark.parametrize(
    ("types", "named"),
    [
        ([OLD + "Transformer", OLD + "Pooling", OLD + "Dense", OLD + "Normalize"], "Dense"),
        ([OLD + "Transformer", OLD + "Pooling", OLD + "Normalize", OLD + "Normalize"], "module 3"),
        ([OLD + "Transformer", OLD + "Pooling", OLD + "LayerNorm"], "LayerNorm"),
        ([OLD + "WordEmbeddings", OLD + "Pooling"], "WordEmbeddings"),
        (["custom_code.Transformer", OLD + "Pooling"], "custom_code.Transformer"),
        ([OLD + "Transformer"], "no Pooling"),
    ],
)
def test_other_modules_are_refused_by_name(tmp_path: Path, types: list[str], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_checkpoint(checkpoint(tmp_path, modules=modules(*types), pooling={"pooling_mode": "mean"}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "roberta"}, "'roberta'"),
        ({"model_type": "nomic_bert"}, "'nomic_bert'"),
        ({"model_type": None}, "None"),
        ({"auto_map": {"AutoModel": "modeling.JinaBert"}}, "auto_map"),
        ({"is_decoder": True}, "decoder"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' position embeddings"),
    ],
)
def test_other_encoders_are_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as error:
        read_checkpoint(checkpoint(tmp_path, config={**BERT, **change}))
    assert isinstance(error.value, (E5OnnxError, ValueError))


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([OLD + "Transformer", OLD + "Pooling"], False),
        ([OLD + "Transformer", OLD + "Pooling", OLD + "Normalize"], True),
        (["sentence_transformers.base.modules.transformer.Transformer", NEW + "pooling.Pooling"], False),
    ],
)
def test_normalisation_is_read_from_the_modules(tmp_path: Path, types: list[str], expected: bool) -> None:
    source = checkpoint(tmp_path, modules=modules(*types), pooling={"pooling_mode": "mean"})
    assert read_checkpoint(source).normalize.value is expected


def test_a_plain_checkpoint_is_what_sentence_transformers_makes_of_it(tmp_path: Path) -> None:
    read = read_checkpoint(checkpoint(tmp_path / "plain"))
    assert (read.pooling.value, read.normalize.value, read.prompts.value) == ("mean", False, {})
    assert "default of sentence-transformers" in read.pooling.source
    assert read.max_tokens.value == 512


@pytest.mark.parametrize(
    ("name", "is_e5"),
    [
        ("e5-small", True),
        ("e5-small-v2", True),
        ("e5-base", True),
        ("e5-large-v2", True),
        ("e5-base-unsupervised", True),
        ("multilingual-e5-small", True),
        ("intfloat_e5-small-v2", True),
        ("multilingual-e5-large-instruct", False),
        ("all-MiniLM-L6-v2", False),
        ("e5onnx-small", False),
        ("the5-small", False),
    ],
)
def test_e5_names_bring_e5_prompts(tmp_path: Path, name: str, is_e5: bool) -> None:
    read = read_checkpoint(checkpoint(tmp_path / name))
    assert read.prompts.value == (E5_PROMPTS if is_e5 else {})
    assert read.normalize.value is is_e5
    assert ("E5 family" in read.prompts.source) is is_e5


def test_the_checkpoints_own_prompts_come_before_the_familys(tmp_path: Path) -> None:
    st = {"prompts": {"query": "find: ", "passage": "text: "}, "default_prompt_name": "query"}
    read = read_checkpoint(checkpoint(tmp_path / "e5-small-v2", st=st))
    assert read.prompts.value == {"query": "find: ", "passage": "text: "}
    assert read.prompts.source == "config_sentence_transformers.json"
    assert read.default_prompt_name == "query"


def test_empty_prompts_are_no_prompts(tmp_path: Path) -> None:
    st = {"prompts": {"query": "", "document": ""}, "default_prompt_name": None}
    assert read_checkpoint(checkpoint(tmp_path / "e5-small-v2", st=st)).prompts.value == E5_PROMPTS
    assert read_checkpoint(checkpoint(tmp_path / "other", st=st)).prompts.value == {}


def test_prompts_can_be_overridden(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "x", st={"prompts": {"query": "q: ", "passage": "p: "}})
    read = read_checkpoint(source, query_prompt="ask: ", document_prompt="")
    assert read.prompts.value == {"query": "ask: ", "passage": ""}
    assert "--query-prompt" in read.prompts.source
    assert "--document-prompt" in read.prompts.source
    read = read_checkpoint(checkpoint(tmp_path / "y"), document_prompt="doc: ")
    assert read.prompts.value == {"document": "doc: "}
    assert read.prompts.source == "--document-prompt"
    with pytest.raises(InputValueError, match="--query-prompt holds the lone surrogate"):
        read_checkpoint(source, query_prompt="\udcff")


@pytest.mark.parametrize(
    ("files", "expected", "source"),
    [
        ({"bert": {"max_seq_length": 256}, "tokenizer": {"model_max_length": 512}}, 256, "sentence_bert_config.json"),
        ({"tokenizer": {"model_max_length": 128}}, 128, "tokenizer_config.json"),
        ({"tokenizer": {"model_max_length": int(1e30)}}, 512, "max_position_embeddings"),
        ({"bert": {"max_seq_length": 2048}}, 512, "max_position_embeddings"),
        ({"bert": {"max_seq_length": None}}, 512, "max_position_embeddings"),
        ({}, 512, "max_position_embeddings"),
    ],
)
def test_the_maximum_is_read(tmp_path: Path, files: dict[str, Any], expected: int, source: str) -> None:
    decision = read_checkpoint(checkpoint(tmp_path, **files)).max_tokens
    assert decision.value == expected
    assert source in decision.source


def test_overrides_win_and_say_so(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, modules=MODULES, pooling={"pooling_mode": "mean"}, bert={"max_seq_length": 256})
    read = read_checkpoint(source, pooling="cls", max_tokens=100)
    assert (read.pooling.value, read.pooling.source) == ("cls", "--pooling")
    assert (read.max_tokens.value, read.max_tokens.source) == (100, "--max-tokens")


@pytest.mark.parametrize("max_tokens", [-1, 0, 2, 513])
def test_an_impossible_maximum_is_refused(tmp_path: Path, max_tokens: int) -> None:
    with pytest.raises(InputValueError, match="from 3 to this encoder's 512"):
        read_checkpoint(checkpoint(tmp_path), max_tokens=max_tokens)


def test_an_encoder_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    layout = [{**MODULES[0], "path": "0_Transformer"}, *MODULES[1:]]
    checkpoint(tmp_path, config=None, modules=layout, pooling={"pooling_mode": "mean"})
    checkpoint(tmp_path / "0_Transformer", bert={"max_seq_length": 77})
    read = read_checkpoint(tmp_path)
    assert read.folder == tmp_path / "0_Transformer"
    assert read.max_tokens.value == 77


def test_missing_and_damaged_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no folder"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    (tmp_path / "modules.json").write_text("nonsense")
    with pytest.raises(CheckpointError, match=r"modules\.json is not valid JSON"):
        read_checkpoint(tmp_path)
