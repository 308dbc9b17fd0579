"""The programs of docs/vector_databases.md and docs/corpora.md run, and find what an exact search finds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from corpora import write_jsonl
from e5onnx import Encoder

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/vector_databases.md").read_text(encoding="utf-8")
CORPORA = (REPOSITORY / "docs/corpora.md").read_text(encoding="utf-8")
PROGRAMS = {
    f"{page} {number}": program
    for page, text in (("page", PAGE), ("corpora", CORPORA))
    for number, program in enumerate(re.findall(r"```py\n(.*?)```", text, re.DOTALL))
}
TEXTS = [
    line
    for line in (REPOSITORY / "export/e5onnx_export/calibration.txt").read_text(encoding="utf-8").splitlines()
    if line.strip()
][:64]


@pytest.fixture(scope="module")
def folder(sample_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, corpus and vectors, as the page has them."""
    folder = tmp_path_factory.mktemp("databases")
    (folder / "models").mkdir()
    (folder / "models/e5-small-v2").symlink_to(sample_model)
    write_jsonl(folder / "corpus.jsonl", [{"text": text} for text in TEXTS])
    (command,) = re.findall(r"^e5onnx (embed .*)$", PAGE, re.MULTILINE)
    subprocess.run([sys.executable, "-m", "e5onnx", *command.split()], check=True, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def scores(sample_model: Path) -> NDArray[np.float32]:
    """The inner product of every text with the query of the programs."""
    encoder = Encoder(sample_model)
    query: NDArray[np.float32] = encoder.encode_query("how much protein should a female eat")
    return np.asarray(encoder.encode_document(TEXTS) @ query)


@pytest.mark.parametrize("program", list(PROGRAMS))
@pytest.mark.filterwarnings("ignore")  # the databases' own
def test_a_program_finds_what_exact_search_finds(
    program: str, folder: Path, scores: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    exec(PROGRAMS[program], {})
    names: dict[str, Any] = {}
    exec(PROGRAMS[program], names)  # again, with what it left
    best = np.argsort(-scores, kind="stable")[:10]
    found = names["found"]
    assert {row[0] for row in found} == set(best.tolist())
    np.testing.assert_allclose([row[2] for row in found], scores[best], rtol=0, atol=1e-5)
    assert all(row[1] == TEXTS[row[0]] for row in found)
