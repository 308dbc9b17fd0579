"""The tensors of a checkpoint, from safetensors or, with torch, from pickled files. Knows no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5onnx.errors import CheckpointError, MissingDependencyError, in_one_line

Floats = NDArray[np.float32]
_SAFETENSORS, _PICKLED = "model.safetensors", "pytorch_model.bin"


class Weights:
    """Tensors by name, read when they are asked for, as float32.

    Names begin after `prefix`, which a checkpoint saved with a training head has ("bert."); LayerNorm's old names
    `gamma` and `beta` are `weight` and `bias`.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        """Open the weights in `folder`.

        Raises:
            CheckpointError: there are none, or they are damaged.
            MissingDependencyError: they are pickled, which needs torch.
        """
        self._folder = folder
        self._tensors = dict(_open(folder))
        if any(name.startswith(prefix) for name in self._tensors):
            self._tensors = {
                name.removeprefix(prefix): tensor for name, tensor in self._tensors.items() if name.startswith(prefix)
            }
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            for name in [name for name in self._tensors if name.endswith(old)]:
                self._tensors.setdefault(name.removesuffix(old) + new, self._tensors.pop(name))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, *shape: int) -> Floats:
        """Return a tensor of this shape; raise :class:`CheckpointError` for any other, and for NaN and infinity."""
        if name not in self._tensors:
            raise CheckpointError(f"the weights in {self._folder} lack the tensor {name}")
        tensor = np.asarray(self._tensors[name](), np.float32)
        if tensor.shape != shape:
            raise CheckpointError(
                f"the weights in {self._folder} do not belong to its config.json: {name} has shape {tensor.shape}, "
                f"expected {shape}"
            )
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"the weights in {self._folder} are damaged: {name} holds NaN or infinity")
        return tensor


def _open(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield names and what reads their tensors, of all files, each file open as long as one of its tensors is used."""
    files = _files(folder, _SAFETENSORS)
    if files:
        for file in files:
            yield from _open_safetensors(folder / file)
        return
    files = _files(folder, _PICKLED)
    if not files:
        raise CheckpointError(f"{folder} has no weights: neither {_SAFETENSORS} nor {_PICKLED}")
    for file in files:
        yield from _open_pickled(folder / file)


def _files(folder: Path, name: str) -> list[str]:
    """Return the file of that name, or the shards that its index lists."""
    if (folder / name).is_file():
        return [name]
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return []
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} does not list the files of the weights: {error}") from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index} lists {shard!r:.80}, which is not the name of a file beside it")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder} lacks {shard}, a part of the weights: was it downloaded to the end?")
    return shards


def _open_safetensors(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    import ml_dtypes  # noqa: F401 - from it, numpy knows bfloat16
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="numpy")
        for name in file.keys():  # noqa: SIM118 - it is not a mapping
            yield name, partial(file.get_tensor, name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _open_pickled(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is a pickle, which only PyTorch reads: pip install 'torch>=2.6', or take a checkpoint with "
            f"{_SAFETENSORS}"
        ) from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file torch and pickle raise nearly any kind
        raise CheckpointError(f"{path} is damaged: {in_one_line(error)[:300]}") from error
    for name, tensor in tensors.items():
        yield name, tensor.float().numpy
