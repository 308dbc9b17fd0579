"""Integrations share encoders, and never one of other arguments."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from e5onnx import Encoder, InputTypeError, ModelFolderError
from e5onnx.integrations.encoders import EncoderArguments, all_arguments, shared_encoder
from integrations.passages import SHORT


def test_equal_arguments_share_an_encoder(sample_model: Path) -> None:
    encoder = shared_encoder(sample_model)
    assert shared_encoder(str(sample_model), precision=None, provider="cpu") is encoder
    assert shared_encoder(sample_model, precision="int8").precision == "int8"
    assert shared_encoder(sample_model, threads=1).threads == 1
    short = shared_encoder(sample_model, **SHORT)
    assert short.dimension == 64
    assert shared_encoder(sample_model, truncate_dim=32, force_truncate_dim=True).dimension == 32
    with pytest.raises(ValueError, match="not known to be trained"):
        shared_encoder(sample_model, truncate_dim=64)
    assert shared_encoder(sample_model, **SHORT) is short
    assert shared_encoder(sample_model) is encoder


def test_arguments_are_those_of_the_encoder(sample_model: Path) -> None:
    parameters = inspect.signature(Encoder).parameters
    assert parameters.keys() - EncoderArguments.__annotations__.keys() == {"model", "compile_cache", "device"}
    assert all_arguments() == {name: parameters[name].default for name in EncoderArguments.__annotations__}
    assert all_arguments(**SHORT) == {**all_arguments(), **SHORT}
    with pytest.raises(InputTypeError, match="no argument 'precison'; those of the encoder are precision, provider"):
        shared_encoder(sample_model, precison="int8")  # type: ignore[call-arg]


def test_a_relative_path_is_another_model_in_another_folder(
    sample_model: Path, e5_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name, model in [("a", sample_model), ("b", e5_model)]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(model)
        monkeypatch.chdir(tmp_path / name)
        found.append(shared_encoder("model").prompts.get("query"))
    assert found == [None, "query: "]


def test_another_fingerprint_is_refused(sample_model: Path) -> None:
    fingerprint = shared_encoder(sample_model).fingerprint
    assert shared_encoder(sample_model, fingerprint=fingerprint).fingerprint == fingerprint
    with pytest.raises(ModelFolderError, match=f"but the stored vectors have {fingerprint}.*embed the documents again"):
        shared_encoder(sample_model, precision="int8", fingerprint=fingerprint)
