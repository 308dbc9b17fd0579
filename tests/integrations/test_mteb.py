"""`E5OnnxModel` in mteb itself, on its mock tasks and on tasks made of local data.

The reference is sentence-transformers with the prompts that the authors' scripts put before each text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize

from e5onnx.errors import InputValueError
from e5onnx.evaluate import evaluate_retrieval, read_retrieval
from e5onnx.integrations.mteb import E5OnnxModel, main
from e5onnx.manifest import MANIFEST
from e5onnx.model_folder import ModelFolder
from helpers import near

mteb = pytest.importorskip("mteb", reason="could not import 'mteb'")
datasets = pytest.importorskip("datasets")

from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS  # noqa: E402
from mteb.mocks.mock_tasks import MockRetrievalTask, MockSTSTask  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # mteb's, of its own tasks

TASK_TYPES = {
    "BitextMining",
    "Classification",
    "Clustering",
    "InstructionReranking",
    "InstructionRetrieval",
    "MultilabelClassification",
    "PairClassification",
    "Regression",
    "Reranking",
    "Retrieval",
    "STS",
    "Summarization",
    "ZeroShotClassification",
}


class Recorded(E5OnnxModel):
    """Keeps what mteb asked for, and what it got."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls: list[tuple[Any, str | None, list[str], Any]] = []

    def encode(self, inputs: Iterable[Any], **options: Any) -> Any:
        batches = list(inputs)
        vectors = super().encode(batches, **options)
        prompt_type = options.get("prompt_type")
        texts = [text for batch in batches for text in batch["text"]]
        self.calls.append((options["task_metadata"], prompt_type and prompt_type.value, texts, vectors))
        return vectors


class LocalQuora(MockRetrievalTask):  # type: ignore[misc]  # mteb may not be installed
    """Stands for Quora's duplicate questions."""

    metadata = MockRetrievalTask.metadata.model_copy(update={"name": "LocalQuoraRetrieval"})


class LocalPairs(AbsTaskSTS):  # type: ignore[misc]
    """Twenty pairs that need nothing from the hub."""

    metadata = MockSTSTask.metadata.model_copy(update={"name": "LocalPairs"})

    def load_data(self, *_: Any, **__: Any) -> None:
        words = ["a cat", "a dog", "the sea", "a mountain", "bread"]
        rows = [
            {"sentence1": f"{one} and {two}", "sentence2": two, "score": float(len(one) * 7 % 5)}
            for one in words
            for two in words
            if one != two
        ]
        self.dataset = {"test": datasets.Dataset.from_list(rows)}
        self.data_loaded = True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model with E5's prompts."""
    copy = tmp_path_factory.mktemp("models") / "tiny-e5"
    shutil.copytree(tiny_model, copy)
    prompts = {"query": "query: ", "passage": "passage: "}
    manifest = replace(ModelFolder.open(tiny_model).manifest, prompts=prompts, revision="1" * 40)
    (copy / MANIFEST).write_text(manifest.to_json())
    return copy


def expected_prompt(task: Any, prompt_type: str | None) -> str:
    """The rule of the authors' mteb_beir_eval.py and mteb_except_retrieval_eval.py."""
    if task.type.endswith("Retrieval") and "Quora" not in task.name and prompt_type == "document":
        return "passage: "
    return "query: "


def test_every_mock_task_runs_with_the_authors_prompts(model: Path, tiny_checkpoint: Path) -> None:
    recorded = Recorded(model, threads=1)
    results = mteb.mock_run(recorded)
    assert results.all_passed, results.to_markdown()
    mteb.evaluate(recorded, LocalQuora(), cache=None)
    assert {task.type for task, *_ in recorded.calls} == TASK_TYPES
    assert {(task.name, kind) for task, kind, *_ in recorded.calls} >= {
        (name, kind)
        for name in ("MockRetrievalTask", "MockRerankingTask", "LocalQuoraRetrieval")
        for kind in ("query", "document")
    }
    documents = [texts for task, kind, texts, _ in recorded.calls if kind == "document" and task.type == "Retrieval"]
    assert "Title of d1 This is a positive sentence" in documents[0]
    reference = SentenceTransformer(str(tiny_checkpoint), device="cpu")
    for task, kind, texts, vectors in recorded.calls:
        prompted = [expected_prompt(task, kind) + text for text in texts]
        normalised = task.type not in ("Classification", "MultilabelClassification")
        near(vectors, reference.encode(prompted, normalize_embeddings=normalised), atol=2e-5)


def test_scores_are_those_of_the_reference_in_mteb(model: Path, tiny_checkpoint: Path) -> None:
    checkpoint = SentenceTransformer(str(tiny_checkpoint), device="cpu")
    reference = SentenceTransformer(modules=[*checkpoint, Normalize()], device="cpu", prompts={"STS": "query: "})
    (ours,), (theirs,) = (
        mteb.evaluate(each, LocalPairs(), cache=None).task_results for each in (E5OnnxModel(model), reference)
    )
    for name, score in theirs.scores["test"][0].items():
        if isinstance(score, float):
            assert ours.scores["test"][0][name] == pytest.approx(score, abs=1e-4), name


def test_retrieval_scores_are_those_of_e5onnx_evaluate(model: Path, data: Path) -> None:
    folder = read_retrieval(data / "xquad_en")

    class LocalXquad(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = MockRetrievalTask.metadata.model_copy(update={"name": "LocalXquad", "eval_splits": ["test"]})

        def load_data(self, *_: Any, **__: Any) -> None:
            texts = zip(folder.documents, folder.texts(), strict=True)
            corpus = [{"id": name, "title": "", "text": text} for name, text in texts]
            queries = [{"id": name, "text": text} for name, text in folder.queries.items()]
            split = {
                "corpus": datasets.Dataset.from_list(corpus),
                "queries": datasets.Dataset.from_list(queries),
                "relevant_docs": folder.relevance,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    ours = E5OnnxModel(model)
    (result,) = mteb.evaluate(ours, LocalXquad(), cache=None).task_results
    expected = evaluate_retrieval(ours.encoder, folder).metrics
    assert 0 < expected["ndcg@10"] < 1
    # mteb rounds to five digits, and rounding of scores may swap two documents that are nearly equal
    assert result.scores["test"][0]["ndcg_at_10"] == pytest.approx(expected["ndcg@10"], abs=1e-4)
    assert result.scores["test"][0]["recall_at_100"] == pytest.approx(expected["recall@100"], abs=1e-4)


def test_the_program_keeps_precision_and_fingerprint(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = mteb.Benchmark(name="local", tasks=[LocalPairs(), LocalQuora()])
    monkeypatch.setattr(mteb, "get_benchmark", {"local": benchmark}.__getitem__)
    arguments = [str(model), "--benchmark", "local", "--output", str(tmp_path), "--threads", "1"]
    main([*arguments, "--task", "LocalPairs"])
    fingerprint = E5OnnxModel(model).encoder.fingerprint
    out = capsys.readouterr().out
    assert out.startswith("LocalPairs ")
    assert out.endswith(f"\nfingerprint {fingerprint}\n")
    (meta,) = tmp_path.rglob("model_meta.json")
    content = json.loads(meta.read_text())
    assert content["revision"] == "1" * 40
    assert (
        content["experiment_kwargs"].items()
        >= {
            "precision": "fp32",
            "provider": "cpu",
            "fingerprint": fingerprint,
        }.items()
    )
    assert (meta.parent / "LocalPairs.json").exists()
    main([*arguments, "--task", "LocalPairs", "--dimensions", "16", "--force"])
    short = E5OnnxModel(model, truncate_dim=16, force_truncate_dim=True).encoder.fingerprint
    assert short != fingerprint
    assert capsys.readouterr().out.endswith(f"\nfingerprint {short}\n")
    with pytest.raises(SystemExit):
        main([*arguments, "--task", "Unknown"])
    assert "has no task Unknown; it has LocalPairs, LocalQuoraRetrieval" in capsys.readouterr().err


def test_what_cannot_be_honoured_is_refused(model: Path, tiny_model: Path) -> None:
    with pytest.raises(InputValueError, match="runs on CPUs only"):
        E5OnnxModel(model, device="cuda")
    with pytest.raises(InputValueError, match="rules of E5's authors"):
        E5OnnxModel(tiny_model)
    with pytest.raises(InputValueError, match="output is float32"):
        E5OnnxModel(model).encode(
            [], task_metadata=MockSTSTask.metadata, hf_split="test", hf_subset="default", precision="int8"
        )
    with pytest.raises(InputValueError, match="which texts are queries"):
        E5OnnxModel(model).encode(
            [{"text": ["a"]}], task_metadata=MockRetrievalTask.metadata, hf_split="test", hf_subset="default"
        )


def test_it_is_mtebs_interface(model: Path) -> None:
    from mteb.models.models_protocols import EncoderProtocol

    ours = E5OnnxModel(model, device="cpu")
    assert isinstance(ours, EncoderProtocol)
    vectors = np.array([[3, 4], [4, 3]], np.float32)
    near(ours.similarity(vectors, vectors).numpy(), [[1, 0.96], [0.96, 1]])
    near(np.asarray(ours.similarity_pairwise(vectors, vectors[::-1].copy())), [0.96, 0.96])
