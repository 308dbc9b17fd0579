"""`e5onnx evaluate`: metrics against pytrec_eval, scipy and scikit-learn; searches against one matrix; broken files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from e5onnx import Encoder, cli
from e5onnx.errors import InferenceError, InputValueError
from e5onnx.evaluate import evaluate_pairs, evaluate_retrieval, find_datasets, read_pairs, read_retrieval
from e5onnx.evaluate.metrics import ndcg, recall, spearman
from e5onnx.evaluate.search import BestDocuments
from e5onnx.manifest import MANIFEST
from e5onnx.model_folder import ModelFolder
from helpers import near, write_jsonl

IDS = st.sampled_from([f"d{number}" for number in range(12)])
E5_PROMPTS = {"query": "query: ", "passage": "passage: "}
DOCUMENTS: list[dict[str, Any]] = [
    {"_id": "d1", "title": "Summit", "text": "The highest point of a mountain."},
    {"_id": "d2", "title": "", "text": "Women should eat 46 grams of protein a day."},
    {"_id": "d3", "text": "A river flows into the sea."},
    {"_id": 4, "title": None, "text": ""},
]
QUERIES = [
    {"_id": "q1", "text": "how much protein should a female eat"},
    {"_id": "q2", "text": "summit define"},
    {"_id": "q3", "text": "a query of another split"},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\td2\t1\nq2\td1\t2\nq2\td3\t0\nq2\t4\t-1\n"
PAIRS = "score\tsentence1\tsentence2\n5\ta man eats\ta man is eating\n0.5\ta man eats\tstars shine\n3\ta dog\ta cat\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A retrieval data set of four documents and two judged queries."""
    write_jsonl(tmp_path / "beir/corpus.jsonl", DOCUMENTS)
    write_jsonl(tmp_path / "beir/queries.jsonl", QUERIES)
    (tmp_path / "beir/qrels").mkdir()
    (tmp_path / "beir/qrels/test.tsv").write_text(QRELS)
    return tmp_path / "beir"


@pytest.fixture(scope="module")
def tiny_e5(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model with E5's prompts."""
    copy = tmp_path_factory.mktemp("models") / "tiny-e5"
    shutil.copytree(tiny_model, copy)
    manifest = replace(ModelFolder.open(tiny_model).manifest, prompts=E5_PROMPTS)
    (copy / MANIFEST).write_text(manifest.to_json())
    return copy


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# Metrics


@settings(max_examples=200, deadline=None)
@given(
    scores=st.dictionaries(IDS, st.integers(-2, 3).map(lambda value: value / 4), min_size=1),
    relevance=st.dictionaries(IDS, st.integers(-1, 3), min_size=1),
)
def test_ranking_and_retrieval_metrics_are_trec_evals(scores: dict[str, float], relevance: dict[str, int]) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    depths = (1, 3, 10)
    measures = {f"ndcg_cut.{','.join(map(str, depths))}", f"recall.{','.join(map(str, depths))}"}
    found = pytrec_eval.RelevanceEvaluator({"q": relevance}, measures).evaluate({"q": scores})["q"]
    best = BestDocuments(list(scores), queries=1, depth=10)
    for position, score in enumerate(scores.values()):
        best.add(np.array([[score]], np.float32), query=0, document=position)
    for depth in depths:
        assert ndcg(best.ranking(0), relevance, depth) == pytest.approx(found[f"ndcg_cut_{depth}"], abs=1e-12)
        assert recall(best.ranking(0), relevance, depth) == pytest.approx(found[f"recall_{depth}"], abs=1e-12)


def test_ndcg_is_the_textbooks() -> None:
    """Written out by hand, for where pytrec_eval is not installed; checked with scikit-learn."""
    from sklearn.metrics import ndcg_score

    gains = {"a": 3, "b": 2, "c": 0, "d": 1}
    order = ["c", "a", "d", "b"]
    by_hand = (3 / np.log2(3) + 1 / 2) / (3 + 2 / np.log2(3) + 1 / 2)
    assert ndcg(order, gains, 3) == pytest.approx(by_hand, abs=1e-12)
    by_sklearn = ndcg_score([list(gains.values())], [[-order.index(each) for each in gains]], k=3)
    assert ndcg(order, gains, 3) == pytest.approx(by_sklearn, abs=1e-12)
    assert recall(order, gains, 3) == pytest.approx(2 / 3)
    assert ndcg(order, {"a": 0}, 10) == recall(order, {"a": -1}, 10) == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-1, 1, width=16)), min_size=2))
def test_spearman_is_scipys_with_ties(pairs: list[tuple[int, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    if len(set(first)) == 1 or len(set(second)) == 1:
        with pytest.raises(InputValueError, match="two different values"):
            spearman(first, second)
    else:
        assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1, 2], [1, float("nan")], "NaN or infinity, as at position 1"),
        ([1, 2, 3], [1, 2], "shapes"),
        ([], [], "two different values"),
    ],
)
def test_spearman_refuses_what_has_no_order(first: list[float], second: list[float], message: str) -> None:
    with pytest.raises(InputValueError, match=message):
        spearman(first, second)


# Search


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_chunks_find_what_one_sort_finds(data: st.DataObject) -> None:
    documents, queries = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 4))
    values = data.draw(st.lists(st.integers(0, 3), min_size=documents * queries, max_size=documents * queries))
    scores = np.array(values, np.float32).reshape(queries, documents)
    depth = data.draw(st.integers(1, 12))
    identifiers = data.draw(st.permutations([f"d{number}" for number in range(documents)]))
    excluded = data.draw(st.lists(st.none() | st.integers(0, documents - 1), min_size=queries, max_size=queries))
    best = BestDocuments(identifiers, queries=queries, depth=depth, excluded=excluded)
    step, block = data.draw(st.integers(1, 31)), data.draw(st.integers(1, 4))
    for start in range(0, documents, step):
        for query in range(0, queries, block):
            best.add(scores[query : query + block, start : start + step], query=query, document=start)
    for query in range(queries):
        takes_part = [each for each in range(documents) if each != excluded[query]]
        takes_part.sort(key=lambda each: (scores[query, each], identifiers[each]), reverse=True)
        assert best.ranking(query) == [identifiers[each] for each in takes_part[:depth]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_numbers_are_errors(value: float) -> None:
    best = BestDocuments(["a", "b"], queries=1, depth=1)
    with pytest.raises(InferenceError, match="query 0 and document 'b' is"):
        best.add(np.array([[1, value]], np.float32), query=0, document=0)


# A model on data


def test_retrieval_equals_sentence_transformers_with_the_authors_prompts(
    folder: Path, tiny_e5: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference has all scores at once; chunks of three texts must find the same."""
    monkeypatch.setattr("e5onnx.evaluate.evaluation._TEXTS_AT_ONCE", 3)
    monkeypatch.setattr("e5onnx.evaluate.evaluation._QUERIES_AT_ONCE", 1)
    seen: list[Any] = []
    encoder = Encoder(tiny_e5, threads=1)

    def similarity(*both: Any) -> Any:
        seen.extend(both)
        return Encoder.similarity(encoder, *both)

    monkeypatch.setattr(encoder, "similarity", similarity)
    advanced: list[int] = []
    data = read_retrieval(folder)
    result = evaluate_retrieval(encoder, data, recall_depths=[1], advance=advanced.append)
    reference = SentenceTransformer(str(tiny_checkpoint), device="cpu")
    queries = reference.encode([f"query: {each['text']}" for each in QUERIES[:2]])
    texts = [f"{each.get('title') or ''} {each['text']}".strip() for each in DOCUMENTS]
    documents = reference.encode([f"passage: {text}" for text in texts])
    near(np.concatenate(seen[0:4:2]), queries)
    near(np.concatenate(seen[1::4]), documents)
    scores = reference.similarity(queries, documents).numpy()
    ranks = [int((row > row[wanted]).sum()) + 1 for row, wanted in zip(scores, [1, 0], strict=True)]
    assert result.metrics == {
        "ndcg@10": pytest.approx(np.mean([1 / np.log2(1 + rank) for rank in ranks])),
        "recall@1": np.mean([rank == 1 for rank in ranks]),
    }
    assert result.prompts == ("query: ", "passage: ")
    assert (result.texts, result.truncated, sum(advanced)) == (6, 0, 6)
    assert data.unjudged == 1


def test_symmetric_retrieval_has_one_prompt(folder: Path, tiny_e5: Path, tiny_model: Path) -> None:
    data = read_retrieval(folder)
    assert evaluate_retrieval(Encoder(tiny_e5, threads=1), data, symmetric=True).prompts == ("query: ", "query: ")
    assert evaluate_retrieval(Encoder(tiny_model, threads=1), data, symmetric=True).prompts == ("", "")


def test_shared_ids_need_a_decision(folder: Path, tiny_e5: Path) -> None:
    write_jsonl(folder / "queries.jsonl", [{"_id": "d2", "text": DOCUMENTS[1]["text"]}])
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nd2\td2\t1\n")
    data = read_retrieval(folder)
    encoder = Encoder(tiny_e5, threads=1)
    with pytest.raises(InputValueError, match=r"1 of 1 queries have the id of a document, such as 'd2'.*--same-ids"):
        evaluate_retrieval(encoder, data)
    assert evaluate_retrieval(encoder, data, same_ids="keep", recall_depths=[4]).metrics["recall@4"] == 1
    assert evaluate_retrieval(encoder, data, same_ids="exclude", recall_depths=[4]).metrics["recall@4"] == 0


def test_a_corpus_that_changes_meanwhile_is_an_error(folder: Path, tiny_e5: Path) -> None:
    data = read_retrieval(folder)
    write_jsonl(folder / "corpus.jsonl", DOCUMENTS[:-1])
    with pytest.raises(InputValueError, match="changed while"):
        evaluate_retrieval(Encoder(tiny_e5, threads=1), data)
    write_jsonl(folder / "corpus.jsonl", DOCUMENTS[::-1])
    with pytest.raises(InputValueError, match="changed while"):
        evaluate_retrieval(Encoder(tiny_e5, threads=1), data)


def test_similarity_equals_sentence_transformers_and_scipy(data: Path, tiny_e5: Path, tiny_checkpoint: Path) -> None:
    pairs = read_pairs(data / "stsb/test.tsv")
    few = replace(pairs, first=pairs.first[:100], second=pairs.second[:100], scores=pairs.scores[:100])
    reference = SentenceTransformer(str(tiny_checkpoint), device="cpu")
    first, second = (
        reference.encode([f"query: {text}" for text in texts], normalize_embeddings=True)
        for texts in (few.first, few.second)
    )
    expected = spearmanr((first * second).sum(axis=1), few.scores).statistic
    result = evaluate_pairs(Encoder(tiny_e5, threads=1), few)
    # rounding may swap two pairs that are nearly equal
    assert result.metrics["spearman"] == pytest.approx(expected, abs=1e-3)
    assert result.prompts == ("query: ", "query: ")


def test_equal_similarities_are_an_error(tiny_e5: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("score\tsentence1\tsentence2\n1\ta\ta\n2\ta\ta\n")
    with pytest.raises(InferenceError, match="the similarities have no order"):
        evaluate_pairs(Encoder(tiny_e5, threads=1), read_pairs(tmp_path / "pairs.tsv"))


def test_published_score_of_the_sample(data: Path, sample_model: Path) -> None:
    """MTEB lists 82.03 for all-MiniLM-L6-v2 on STSBenchmark."""
    result = evaluate_pairs(Encoder(sample_model), read_pairs(data / "stsb/test.tsv"))
    assert result.metrics["spearman"] == pytest.approx(0.8203, abs=5e-5)


def test_settings_without_a_meaning_are_errors(folder: Path, tiny_e5: Path) -> None:
    encoder, data = Encoder(tiny_e5, threads=1), read_retrieval(folder)
    assert list(evaluate_retrieval(encoder, data, recall_depths=()).metrics) == ["ndcg@10"]
    for depth in (0, -1):
        with pytest.raises(InputValueError, match=f"recall_depths must be at least 1, got {depth}"):
            evaluate_retrieval(encoder, data, recall_depths=[10, depth])
    with pytest.raises(TypeError, match=r"recall_depths must be a whole number, got 1\.5"):
        evaluate_retrieval(encoder, data, recall_depths=[1.5])  # type: ignore[list-item]
    with pytest.raises(InputValueError, match='same_ids must be "exclude", "keep" or None, got \'Exclude\''):
        evaluate_retrieval(encoder, data, same_ids="Exclude")  # type: ignore[arg-type]


# Files


def test_paths_may_be_texts(folder: Path) -> None:
    (folder / "pairs.tsv").write_text(PAIRS)
    assert read_retrieval(str(folder)) == read_retrieval(folder)
    assert read_pairs(str(folder / "pairs.tsv")) == read_pairs(folder / "pairs.tsv")
    assert find_datasets([str(folder)]) == find_datasets([folder])


def test_datasets_are_found(folder: Path) -> None:
    (folder / "extra.tsv").write_text(PAIRS)
    (folder / "qrels/dev.tsv").write_text("\ufeff" + QRELS.replace("\n", "\r\n").replace("q1", "q3") + "\r\n")
    assert [each.name for each in find_datasets([folder, folder / "extra.tsv"])] == ["beir", *["beir/extra"] * 2]
    assert list(read_retrieval(folder, "dev").queries) == ["q2", "q3"]
    pairs = read_pairs(folder / "extra.tsv")
    assert (pairs.first[1], pairs.second[1], pairs.scores) == ("a man eats", "stars shine", [5, 0.5, 3])


def without(text: str) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(text.encode(), b"")


def then(text: str | bytes) -> Callable[[bytes], bytes]:
    return lambda content: content + (text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("corpus.jsonl", then('{"_id": "d1", "text": ""}'), "line 5: the id 'd1' occurs a second time"),
        ("corpus.jsonl", then('\n\n{"_id": "4", "text": ""}'), "line 7: the id '4' occurs a second time"),
        ("corpus.jsonl", then("{"), "line 5: this is not valid JSON"),
        ("corpus.jsonl", then("[" * 100_000), "line 5: this is not valid JSON"),
        ("corpus.jsonl", then("[]"), "line 5: expected an object, got a list"),
        ("corpus.jsonl", then('{"text": ""}'), "line 5: the object has no _id"),
        ("corpus.jsonl", then('{"_id": true, "text": ""}'), "line 5: _id is a boolean, expected a string"),
        ("corpus.jsonl", then('{"_id": "d9"}'), "line 5: text is missing"),
        ("corpus.jsonl", then('{"_id": "d9", "text": null}'), "line 5: text is null"),
        ("corpus.jsonl", then('{"_id": "d9", "title": 1, "text": ""}'), "line 5: title is a number"),
        ("corpus.jsonl", then('{"_id": "d9", "text": "\\ud800"}'), r"line 5: text holds the lone surrogate U\+D800"),
        ("corpus.jsonl", then(b"\xff"), "line 5: this is not valid UTF-8"),
        ("queries.jsonl", then('{"_id": "q1", "text": ""}'), "line 4: the id 'q1' occurs a second time"),
        ("qrels/test.tsv", without("query-id\tcorpus-id\tscore\n"), r"line 1: the first line must name .*'q1\\td2"),
        ("qrels/test.tsv", then("q1\td7\t1"), "line 6: there is no document 'd7' in corpus.jsonl"),
        ("qrels/test.tsv", then("q7\td1\t1"), "line 6: there is no query 'q7' in queries.jsonl"),
        ("qrels/test.tsv", then("q1\td2\t0"), "line 6: query 'q1' and document 'd2' are judged twice"),
        (
            "qrels/test.tsv",
            then("q1\td1\t0.5"),
            "line 6: the score must be a whole number of up to 9 digits, got '0.5'",
        ),
        ("qrels/test.tsv", then("q1\td1\t" + "9" * 400), "line 6: the score must be a whole number of up to 9 digits"),
        ("qrels/test.tsv", then("q1 d1 1"), "line 6: expected 3 fields, got 1"),
        ("qrels/test.tsv", lambda content: content[:24], "no judgements"),
        ("pairs.tsv", then("x\ta\tb"), "line 5: the score must be a number, got 'x'"),
        ("pairs.tsv", then("nan\ta\tb"), "line 5: the score must be a number, got 'nan'"),
        ("pairs.tsv", then("1\t \tb"), "line 5: sentence1 is empty"),
        ("pairs.tsv", then("1\ta\tb\tc"), "line 5: expected 3 fields, got 4"),
        ("pairs.tsv", without("sentence2"), "line 1: the first line must name the columns score, sentence1, sentence2"),
        ("pairs.tsv", lambda content: content[:53], "no two pairs with different scores"),
        ("pairs.tsv", lambda content: b"", "no two pairs with different scores"),
    ],
)
def test_broken_files_are_errors_with_a_line(
    folder: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    (folder / "pairs.tsv").write_text(PAIRS)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(InputValueError, match=message) as caught:
        find_datasets([folder])
    assert str(caught.value).startswith(str(folder / name))


def test_missing_files_are_errors(folder: Path, tmp_path: Path) -> None:
    (folder / "queries.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"queries\.jsonl"):
        find_datasets([folder])
    with pytest.raises(InputValueError, match="has neither"):
        find_datasets([tmp_path])


# The command


def test_every_precision_and_provider_is_a_row(
    folder: Path, sample_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pairs.tsv").write_text(PAIRS)
    output = tmp_path / "results.json"
    code, out, error = run(capsys, sample_model, folder, "--json", output, "--threads", 1, "--recall", "1,2")
    assert code == 0, error
    content = json.loads(output.read_text())
    assert content["threads"] == 1
    retrieval, similarity = content["datasets"]
    assert (retrieval["queries"], retrieval["documents"], retrieval["unjudged_queries"]) == (2, 4, 1)
    rows = {(row["provider"], row["precision"]): row for row in similarity["results"]}
    assert {("cpu", "fp32"), ("cpu", "int8")} <= rows.keys()
    reasons = {(each["provider"], each["precision"]): each["reason"] for each in content["left_out"]}
    assert len(rows) + len(reasons) == 6
    assert not rows.keys() & reasons.keys()
    manifest = ModelFolder.open(sample_model).manifest
    for (provider, precision), row in rows.items():
        assert row["fingerprint"] == manifest.fingerprint(precision, provider)
        assert row["fingerprint"] in out
        assert row["metrics"] == {"spearman": 1}
    for row in retrieval["results"]:
        assert row["metrics"] == {"ndcg@10": 1, "recall@1": 1, "recall@2": 1}
    for reason in reasons.values():
        assert reason in out
    assert "queries left out, as this split has no judgement of them: 1" in error


def test_json_on_standard_output_is_all_there(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, tiny_model, folder, "--provider", "cpu", "--json", "-")
    assert code == 0
    content = json.loads(out)
    assert [row["precision"] for row in content["datasets"][0]["results"]] == ["fp32"]
    (left_out,) = content["left_out"]
    assert (left_out["provider"], left_out["precision"]) == ("cpu", "int8")
    assert "no graph with precision 'int8'" in left_out["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "int8 cannot run: this model has no graph with precision 'int8'"),
        (["--precision", "fp32,int8", "--provider", "cpu"], "int8 cannot run: this model has no graph"),
        (["--precision", "bf16", "--provider", "cpu"], "cpu cannot run: it does not go with bf16"),
        (["--provider", "openvino"], "openvino cannot run: "),
        (["--split", "train"], "train.tsv"),
        (["--json", "/nowhere/results.json"], "/nowhere"),
        (["--json", "/"], "there is something other than a file"),
        (["--threads", "0"], "error: threads must be at least 1, got 0\n"),
    ],
)
def test_what_the_user_named_must_run(
    folder: Path, tiny_model: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = run(capsys, tiny_model, folder, *arguments)
    assert (code, out) == (1, "")
    assert message in error


def test_failures_leave_no_output(folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(folder / "queries.jsonl", [{"_id": "d1", "text": "one"}])
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nd1\td2\t0\n")
    output = folder / "results.json"
    code, _, error = run(capsys, tiny_model, folder, "--json", output)
    assert code == 1
    assert "--same-ids" in error
    assert not list(folder.glob("*results*"))
    code, _, error = run(capsys, tiny_model, folder, "--json", output, "--same-ids", "exclude", "--provider", "cpu")
    assert code == 0
    assert "counted as 0 as in trec_eval: 1" in error
    assert json.loads(output.read_text())["datasets"][0]["results"][0]["metrics"]["ndcg@10"] == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_results_replace_neither_a_pipe_nor_a_link(
    folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As root, the results would otherwise take the place of /dev/stdout for everybody."""
    pipe, link, target = (tmp_path / name for name in ("pipe", "link", "target"))
    os.mkfifo(pipe)
    target.touch()
    link.symlink_to(target)
    code, _, error = run(capsys, tiny_model, folder, "--provider", "cpu", "--json", pipe)
    assert (code, pipe.is_fifo()) == (1, True)
    assert error.endswith(f"there is something other than a file: {pipe}\n")
    code, _, error = run(capsys, tiny_model, folder, "--provider", "cpu", "--json", link)
    assert (code, link.is_symlink()) == (0, True)
    assert json.loads(target.read_text())["datasets"]


@pytest.mark.parametrize(
    "arguments", [["--precision", "fp16"], ["--provider", "cuda"], ["--recall", "0"], ["--recall", "x"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(capsys, "MODEL", "FOLDER", *arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_damaged_graph_is_an_error_not_left_out(
    folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(tiny_model, copy)
    graph = next(copy.glob("onnx/*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    code, _, error = run(capsys, copy, folder)
    assert code == 1
    assert "model.onnx" in error
