"""The programs of docs/integrations.md run, and find the text that answers the question."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/integrations.md").read_text(encoding="utf-8")
TEXTS, *_ = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)
PACKAGES = {
    "LangChain": "langchain_core",
    "LlamaIndex": "llama_index.core",
    "Haystack": "haystack",
    "Chroma": "chromadb",
    "LanceDB": "lancedb",
}


@pytest.mark.parametrize("library", list(PACKAGES))
def test_the_programs_find_the_answer(
    library: str, sample_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(PACKAGES[library])
    (tmp_path / "intfloat").mkdir()
    (tmp_path / "intfloat/e5-small-v2").symlink_to(sample_model)
    monkeypatch.chdir(tmp_path)
    section = PAGE.partition(f"## {library}\n")[2].partition("\n## ")[0]
    programs = re.findall(r"```py\n(.*?)```", section, re.DOTALL)
    assert programs
    for program in programs:
        names: dict[str, Any] = {}
        exec(compile(TEXTS + program, library, "exec", dont_inherit=True), names)
        assert names["found"] == names["texts"][:1]


def test_the_page_names_extras_that_exist() -> None:
    extras = re.findall(r"^([a-z-]+) = \[", (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    named = {extra for group in re.findall(r"'e5onnx\[(.*?)\]'", PAGE) for extra in group.split(",")}
    assert named <= set(extras)
    assert len(named) == 1 + len(PACKAGES)
