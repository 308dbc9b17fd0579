"""Every family and every pooling that can be built, exported without PyTorch, against sentence-transformers."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from checkpoints import make_checkpoint
from e5onnx import Encoder
from e5onnx.manifest import POOLINGS
from e5onnx_export import export_model
from e5onnx_export.network import FAMILIES
from helpers import near, write_json
from texts import TEXTS

SMALL: dict[str, Any] = {"layers": 2, "hidden_size": 48, "heads": 4}
MODULES = ("Transformer", "Pooling", "Normalize")
OTHER_SCRIPTS = [
    "Ελληνικά γράμματα",
    "кириллица и слова",
    "日本語の文章",
    "한국어 문장",
    "جملة عربية",
    "हिन्दी वाक्य",
    "עברית",
    "🙂🚀",
]
WORDS = " ".join([*TEXTS, *OTHER_SCRIPTS]).split()


def many_texts(count: int = 240) -> list[str]:
    """Return texts of every length up to beyond 512 tokens, in many scripts; the short ones are the most frequent."""
    generator = np.random.default_rng(1)
    lengths = np.unique(np.geomspace(1, 420, 60).astype(int))
    texts = [*TEXTS, *OTHER_SCRIPTS, "<mask> [MASK] </s> [SEP] <pad> [PAD]", "a <pad> b", " lead", "two  spaces\n"]
    while len(texts) < count:
        length = int(lengths[int(len(lengths) * generator.random() ** 2)])
        texts.append(" ".join(generator.choice(WORDS, length)))
    return texts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family) / "checkpoint"
            made[family] = make_checkpoint(folder, family=family, modules=MODULES, max_seq_length=512, **SMALL)
        return made[family]

    return make


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_equal_sentence_transformers(
    checkpoint: Callable[[str], Path], tmp_path: Path, family: str, pooling: str
) -> None:
    source = checkpoint(family)
    write_json(source / "1_Pooling/config.json", {"word_embedding_dimension": 48, "pooling_mode": pooling})
    maximum = 512 if pooling == "mean" else 60  # the others differ after the encoder alone
    write_json(source / "sentence_bert_config.json", {"max_seq_length": maximum, "do_lower_case": False})
    folder = export_model(source, tmp_path / "model", precisions=["fp32"])
    (graph,) = folder.manifest.graphs
    assert graph.parity["numpy_max_abs_difference"] < 1e-5
    assert graph.parity["pytorch_max_abs_difference"] < 1e-5
    peer = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    encoder = Encoder(tmp_path / "model")
    texts = many_texts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # long texts are cut
        expected = peer.encode(texts, batch_size=16)
        near(encoder.encode(texts), expected)
        near(np.stack([encoder.encode(text) for text in texts]), expected)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2  # random weights tell texts apart


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "optimum", "sentence_transformers"):
    sys.modules[name] = None
from e5onnx_export import export_model
for number, checkpoint in enumerate(sys.argv[2:]):
    export_model(checkpoint, f"{sys.argv[1]}/{number}", calibration=None)
"""


def test_every_family_is_exported_without_pytorch(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    sources = [checkpoint(family) for family in FAMILIES]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(tmp_path), *map(str, sources)], check=True)
    for number, source in enumerate(sources):
        fp32, int8 = (Encoder(tmp_path / str(number), precision=precision) for precision in ("fp32", "int8"))
        texts = many_texts(40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = SentenceTransformer(str(source), device="cpu", local_files_only=True)
            near(fp32.encode(texts), peer.encode(texts))
            assert (fp32.encode(texts) * int8.encode(texts)).sum(1).mean() > 0.98
        assert fp32.manifest.tools.keys().isdisjoint({"torch", "transformers"})
