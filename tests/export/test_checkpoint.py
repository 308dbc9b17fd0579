"""What is read from a checkpoint's files, where each decision comes from, and what is refused. No weights, no torch."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5onnx.errors import CheckpointError, E5OnnxError, InputValueError, ModelNotFoundError
from e5onnx_export.checkpoint import read_checkpoint
from helpers import write_json

BERT = {
    "model_type": "bert",
    "max_position_embeddings": 512,
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 30,
}
E5_PROMPTS = {"query": "query: ", "document": "passage: "}
FILES = {
    "config": "config.json",
    "modules": "modules.json",
    "pooling": "1_Pooling/config.json",
    "normalize": "2_Normalize/config.json",
    "bert": "sentence_bert_config.json",
    "st": "config_sentence_transformers.json",
    "tokenizer": "tokenizer_config.json",
}
OLD, NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules."


def checkpoint(folder: Path, **files: Any) -> Path:
    """Write a checkpoint's JSON files, which :data:`FILES` names; with settings, they are complete."""
    settings: dict[str, Any] = {"modules": MODULES[:2], "pooling": {"pooling_mode": "mean"}}
    for name, content in {"config": BERT, **(settings if files.keys() & {"bert", "st"} else {}), **files}.items():
        if content is not None:
            write_json(folder / FILES[name], content)
    return folder


def modules(*types: str) -> list[dict[str, Any]]:
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    return [
        {"idx": i, "name": str(i), "path": paths.get(t.rpartition(".")[2], f"{i}_X"), "type": t}
        for i, t in enumerate(types)
    ]


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
        ({"pooling_mode": "attention"}, "attention pooling"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"cls \+ mean pooling"),
        ({"pooling_mode": ["mean", "max"]}, r"mean \+ max pooling"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
        ({"pooling_mode": "MEAN"}, "MEAN pooling"),
        ({"pooling_mode": ["mean", 3]}, r"mean \+ 3 pooling"),
        ({"pooling_mode_mean_tokens": "false"}, r"1_Pooling/config\.json: pooling_mode_mean_tokens .* 'false'"),
        ({"pooling_mode": "mean", "layers": 2}, r"1_Pooling/config\.json sets 'layers' to 2"),
        (None, r"1_Pooling/config\.json, which modules\.json names, is missing"),
    ],
)
def test_other_pooling_is_refused_by_name(tmp_path: Path, config: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_checkpoint(checkpoint(tmp_path, modules=MODULES, pooling=config))


@pytest.mark.parametrize(
    ("types", "named"),
    [
        ([OLD + "Transformer", OLD + "Dense", OLD + "Pooling"], "Dense"),
        ([OLD + "Transformer", OLD + "Pooling", OLD + "Normalize", OLD + "Dense"], "Dense"),
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
        ({"rotary_emb_base": 1000}, r"config\.json sets 'rotary_emb_base' to 1000, which is not known; --via optimum"),
        ({"hidden_act": "gelu_10"}, "hidden_act is 'gelu_10'; the builder knows gelu, "),
        ({"model_type": None}, r"config\.json lacks the key model_type"),
        ({"auto_map": {"AutoModel": "modeling.JinaBert"}}, "auto_map"),
        ({"is_decoder": True}, "decoder"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config is"),
        ({"chunk_size_feed_forward": 8}, "chunk_size_feed_forward is 8"),
        ({"hidden_act": "xielu"}, "hidden_act is 'xielu'; the builder knows gelu, "),
        ({"hidden_act": ["gelu"]}, "hidden_act is"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than any encoder has"),
        ({"num_attention_heads": 3}, "the hidden size 8 is not a multiple of the number of attention heads, 3"),
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


def test_empty_prompts_are_prompts_unless_the_family_has_its_own(tmp_path: Path) -> None:
    st = {"prompts": {"query": "", "document": ""}, "default_prompt_name": None}
    assert read_checkpoint(checkpoint(tmp_path / "e5-small-v2", st=st)).prompts.value == E5_PROMPTS
    prompts = read_checkpoint(checkpoint(tmp_path / "other", st=st)).prompts
    assert prompts.value == {"query": "", "document": ""}
    assert prompts.source == "config_sentence_transformers.json"


def test_a_prompt_of_null_is_empty_as_in_sentence_transformers(tmp_path: Path) -> None:
    st = {"prompts": {"query": "q: ", "document": None}}
    assert read_checkpoint(checkpoint(tmp_path, st=st)).prompts.value == {"query": "q: ", "document": ""}


@pytest.mark.parametrize(
    ("st", "named"),
    [
        ({"prompts": ["query: "]}, "prompts must be an object, not"),
        ({"prompts": {"query": 3}}, "prompts: query must be text, not 3"),
        ({"prompts": {"query": ["q: "]}}, "prompts: query must be text"),
        ({"prompts": {"query": "\ud800"}}, "prompts holds the lone surrogate"),
        ({"prompts": {"query": "q: "}, "default_prompt_name": "other"}, "default_prompt_name is 'other'.* 'query'"),
        ({"default_prompt_name": "query"}, "default_prompt_name is 'query', but there are no prompts"),
        ({"prompts": {"query": "q: "}, "default_prompt_name": 1}, "default_prompt_name must be text, not 1"),
    ],
)
def test_impossible_prompts_are_refused_by_name(tmp_path: Path, st: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=f"config_sentence_transformers.json: {named}"):
        read_checkpoint(checkpoint(tmp_path, st=st))


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
        ({"bert": {"max_seq_length": 2048}, "tokenizer": {"model_max_length": 64}}, 512, "max_position_embeddings"),
        ({"bert": {"tokenizer_args": {"model_max_length": 64}}, "tokenizer": {"model_max_length": 32}}, 64, "_args"),
        ({"bert": {"processor_kwargs": {"model_max_length": 64}}}, 64, "processor_kwargs"),
        ({"bert": {"max_seq_length": 64, "tokenizer_args": {"model_max_length": 64}}}, 64, "sentence_bert_config.json"),
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


@pytest.mark.parametrize("file", ["st", "bert"])
def test_settings_that_sentence_transformers_ignores_are_refused(tmp_path: Path, file: str) -> None:
    source = checkpoint(tmp_path, **{file: {}}, modules=None)
    with pytest.raises(CheckpointError, match=rf"has {FILES[file]} but no modules\.json"):
        read_checkpoint(source)


def test_an_encoder_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    layout = [{**MODULES[0], "path": "0_Transformer"}, *MODULES[1:]]
    checkpoint(tmp_path, config=None, modules=layout, pooling={"pooling_mode": "mean"})
    checkpoint(tmp_path / "0_Transformer")
    write_json(tmp_path / "0_Transformer/sentence_bert_config.json", {"max_seq_length": 77})
    read = read_checkpoint(tmp_path)
    assert read.folder == tmp_path / "0_Transformer"
    assert read.max_tokens.value == 77


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"bert": {"max_seq_length": 2}}, r"sentence_bert_config\.json: max_seq_length must be .* 3 or more, not 2"),
        ({"bert": {"max_seq_length": "256"}}, r"sentence_bert_config\.json: max_seq_length .* '256'"),
        ({"tokenizer": {"model_max_length": 0}}, r"tokenizer_config\.json: model_max_length .* 0"),
        ({"tokenizer": {"model_max_length": float("nan")}}, r"tokenizer_config\.json: model_max_length .* nan"),
        ({"config": {**BERT, "max_position_embeddings": 2}}, r"config\.json: max_position_embeddings .* 2"),
        ({"bert": {"max_seq_length": 9, "tokenizer_args": {"model_max_length": 8}}}, "is 9, and .* is 8.*--max-tokens"),
    ],
)
def test_impossible_maxima_name_their_file(tmp_path: Path, files: dict[str, Any], named: str) -> None:
    source = checkpoint(tmp_path, **files)
    with pytest.raises(CheckpointError, match=named):
        read_checkpoint(source)


# Settings of sentence-transformers


SETTINGS_OF_RELEASE = {
    "2.0": {
        "bert": {"max_seq_length": 256, "do_lower_case": False},
        "st": {"__version__": {"sentence_transformers": "2.0.0", "transformers": "4.6.1", "pytorch": "1.8.1"}},
        "pooling": {
            "word_embedding_dimension": 8,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    },
    "5.0": {
        "bert": {"max_seq_length": 256, "do_lower_case": False},
        "st": {
            "model_type": "SentenceTransformer",
            "__version__": {"sentence_transformers": "5.0.0", "transformers": "4.53.0", "pytorch": "2.7.1"},
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "pooling": {
            "word_embedding_dimension": 8,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": False,
            "include_prompt": True,
        },
    },
    "6.2": {
        "bert": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
        "tokenizer": {"model_max_length": 256},
        "st": {
            "__version__": {"pytorch": "2.13.0", "sentence_transformers": "6.2.0", "transformers": "5.24.0"},
            "default_prompt_name": None,
            "model_type": "SentenceTransformer",
            "prompts": {"document": "", "query": ""},
            "similarity_fn_name": "cosine",
        },
        "pooling": {"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": True},
        "normalize": {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
    },
}


@pytest.mark.parametrize("release", SETTINGS_OF_RELEASE)
def test_what_each_release_writes_by_default_is_read(tmp_path: Path, release: str) -> None:
    read = read_checkpoint(checkpoint(tmp_path, modules=MODULES, **SETTINGS_OF_RELEASE[release]))
    assert (read.pooling.value, read.normalize.value, read.max_tokens.value) == ("mean", True, 256)
    assert (read.dimension.value, read.similarity_fn_name.value) == (8, "cosine")
    assert (read.lowercase, read.tokenizer_args, read.default_prompt_name) == (False, {}, None)


@pytest.mark.parametrize(
    ("truncate_dim", "expected"), [(3, 3), (1, 1), (8, 8), (9, 8), (None, 8)], ids=["3", "1", "all", "more", "null"]
)
def test_the_dimension_is_read(tmp_path: Path, truncate_dim: int | None, expected: int) -> None:
    assert read_checkpoint(checkpoint(tmp_path, st={"truncate_dim": truncate_dim})).dimension.value == expected


def test_similarity_and_tokenizer_arguments_are_read(tmp_path: Path) -> None:
    arguments = {"do_lower_case": False, "use_fast": True, "model_max_length": 99, "padding_side": "right"}
    harmless = {"model_args": {"attn_implementation": "sdpa"}, "unpad_inputs": True, "config_args": {}}
    files = {"st": {"similarity_fn_name": "dot"}, "bert": {"tokenizer_args": arguments, **harmless}}
    read = read_checkpoint(checkpoint(tmp_path, **files))
    assert (read.similarity_fn_name.value, read.tokenizer_args) == ("dot", {"do_lower_case": False})


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"st": {"similarity_fn_name": "euclidean"}}, "similarity_fn_name is 'euclidean'; only 'cosine' or 'dot'"),
        ({"st": {"similarity_fn_name": "manhattan"}}, "similarity_fn_name is 'manhattan'"),
        ({"st": {"model_type": "SparseEncoder"}}, "model_type is 'SparseEncoder'"),
        ({"st": {"truncate_dim": 0}}, "truncate_dim must be a number, 1 or more, not 0"),
        ({"st": {"truncate_dim": 4.5}}, "truncate_dim must be a whole number, not 4.5"),
        ({"st": {"truncate_dim": True}}, "truncate_dim .* not True"),
        ({"st": {"quantize": "int8"}}, "config_sentence_transformers.json sets 'quantize' to 'int8'"),
        ({"bert": {"do_lower_case": "no"}}, "do_lower_case must be true or false, not 'no'"),
        ({"bert": {"transformer_task": "fill-mask"}}, "transformer_task is 'fill-mask'"),
        ({"bert": {"module_output_name": "sentence_embedding"}}, "module_output_name is 'sentence_embedding'"),
        (
            {"bert": {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}},
            "modality_config is .*pooler_output",
        ),
        ({"bert": {"processing_kwargs": {"text": {"max_length": 8}}}}, "processing_kwargs is .*max_length"),
        ({"bert": {"config_args": {"num_hidden_layers": 1}}}, "config_args is .*num_hidden_layers"),
        ({"bert": {"config_kwargs": {"num_hidden_layers": 1}}}, "config_kwargs is .*num_hidden_layers"),
        ({"bert": {"model_args": {"num_hidden_layers": 1}}}, "model_args sets 'num_hidden_layers' to 1"),
        ({"bert": {"tokenizer_args": {"truncation_side": "left"}}}, "tokenizer_args: truncation_side is 'left'"),
        ({"bert": {"tokenizer_args": {"use_fast": False}}}, "tokenizer_args: use_fast is False"),
        ({"bert": {"tokenizer_args": {"unk_token": "x"}}}, "tokenizer_args sets 'unk_token' to 'x'"),
        ({"bert": {"tokenizer_args": {"strip_accents": 1}}}, "tokenizer_args: strip_accents must be true or false"),
        ({"bert": {"query_length": 32}}, "query_length is 32, which is not supported"),
        ({"bert": {"future": None}}, "sets 'future' to None"),
        ({"modules": [{**MODULES[0], "kwargs": ["task"]}, *MODULES[1:]]}, "module 0: kwargs is"),
        (
            {"modules": [{**MODULES[0], "name": "1"}, {**MODULES[1], "name": "1"}]},
            "several modules with the same name: '1', '1'",
        ),
        (
            {"modules": MODULES, "pooling": {"pooling_mode": "mean"}, "normalize": {"module_input_name": "x"}},
            "2_Normalize/config.json: module_input_name is 'x'",
        ),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, files: dict[str, Any], named: str) -> None:
    source = checkpoint(tmp_path, **files)
    with pytest.raises(CheckpointError, match=named):
        read_checkpoint(source)


def test_adapters_are_refused(tmp_path: Path) -> None:
    write_json(checkpoint(tmp_path) / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(CheckpointError, match=r"adapter_config\.json.*merge"):
        read_checkpoint(tmp_path)


# Damage


@pytest.mark.parametrize("key", [key for key in BERT if key != "model_type"])
@pytest.mark.parametrize("value", [None, "many", 0, -1, 1.5, True, [], float("nan")])
def test_missing_and_impossible_sizes_are_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json(: | lacks the key ){key}"):
        read_checkpoint(checkpoint(tmp_path, config={**BERT, key: value}))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"config": []}, r"config\.json must be an object, not \[\]"),
        ({"config": {}}, r"it has no config\.json"),
        ({"modules": {}}, r"modules\.json must be a list"),
        ({"modules": ["Transformer", "Pooling"]}, r"modules\.json: module 0 must be an object, not 'Transformer'"),
        ({"modules": [{"type": OLD + "Transformer"}]}, "module 0 lacks the key path"),
        ({"modules": [{"path": "", "type": OLD + "Transformer"}]}, "module 0 lacks the key name"),
        ({"modules": [{"path": ""}]}, "module 0 has no type"),
        ({"modules": [{"path": 0, "type": OLD + "Transformer"}]}, "module 0: path must be text, not 0"),
        ({"modules": [{**MODULES[0], "path": "../other"}]}, "leads out of the checkpoint"),
        ({"modules": [{**MODULES[0], "path": "/etc"}]}, "leads out of the checkpoint"),
        ({"modules": [{**MODULES[0], "path": "a\0"}]}, "leads out of the checkpoint"),
        ({"bert": [1]}, r"sentence_bert_config\.json must be an object"),
        ({"bert": {"tokenizer_args": "x"}}, "tokenizer_args must be an object, not 'x'"),
        ({"st": "text"}, r"config_sentence_transformers\.json must be an object"),
        ({"tokenizer": 5}, r"tokenizer_config\.json must be an object"),
    ],
)
def test_files_of_another_form_are_named(tmp_path: Path, files: dict[str, Any], named: str) -> None:
    source = checkpoint(tmp_path, **files)
    with pytest.raises(CheckpointError, match=named):
        read_checkpoint(source)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 600)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["mean", "dot"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("query"), inner, max_size=3)
    ),
    max_leaves=5,
)
GOOD: dict[str, Any] = {"config": BERT, "modules": MODULES, **SETTINGS_OF_RELEASE["6.2"]}


def places(content: Any) -> list[list[Any]]:
    """Return the path to each value within a JSON document."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [[], *([key, *path] for key, value in inner for path in places(value))]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_change_of_a_setting_ends_in_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    files = copy.deepcopy(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from([[name, *path] for name in files for path in places(files[name])]))
        container: Any = files
        for key in path:
            container = container[key]
        container[last] = data.draw(JSON)
    folder = tmp_path_factory.mktemp("checkpoint")
    for name, content in files.items():
        write_json(folder / FILES[name], content)
    try:
        read = read_checkpoint(folder)
    except CheckpointError:
        pass  # any other error fails the test
    else:
        assert all(isinstance(prompt, str) for prompt in read.prompts.value.values())
        assert read.default_prompt_name in (None, *read.prompts.value)
        assert 3 <= read.max_tokens.value <= 600
        assert 1 <= read.dimension.value <= read.encoder.hidden_size


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
    (tmp_path / "modules.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"modules\.json is not valid JSON"):
        read_checkpoint(tmp_path)
    (tmp_path / "modules.json").write_text("null")
    with pytest.raises(CheckpointError, match=r"modules\.json holds null"):
        read_checkpoint(tmp_path)
    (tmp_path / "modules.json").unlink()
    (tmp_path / "modules.json").mkdir()
    with pytest.raises(CheckpointError, match=r"modules\.json cannot be read"):
        read_checkpoint(tmp_path)
