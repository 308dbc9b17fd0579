from pathlib import Path

from e5onnx import Encoder


def test_smoke(sample_model: Path, e5_model: Path) -> None:
    assert Encoder(e5_model).encode_query("hello").shape == (384,)
    assert Encoder(sample_model).encode("hello").shape == (384,)
