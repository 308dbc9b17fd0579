"""Data sets to evaluate on: a BEIR folder, or pairs of sentences in a tab-separated file.

Anything that would change a score in silence is an error with its file and line. Only the texts of the corpus stay on
disk, as it may have millions.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import check_encodable, json_type
from ..errors import InputValueError

_QRELS = ["query-id", "corpus-id", "score"]
_PAIRS = ["score", "sentence1", "sentence2"]


@dataclass(frozen=True)
class Retrieval:
    """Queries, documents, and which documents are relevant to which query.

    Attributes:
        queries: the text of each query that the judgements name, by id.
        documents: the position of each document in the corpus, by id.
        relevance: for each query, the relevance of its judged documents, by their ids. Above 0 is relevant.
        unjudged: number of queries without a judgement. They are left out: BEIR's files hold the queries of all splits.
    """

    name: str
    path: Path
    queries: dict[str, str]
    documents: dict[str, int]
    relevance: dict[str, dict[str, int]]
    unjudged: int

    def texts(self) -> Iterator[str]:
        """Iterate over the documents' texts, read again: title and text with a space between, as E5's authors do."""
        for position, (_, identifier, text) in enumerate(_documents(self.path / "corpus.jsonl")):
            if self.documents.get(identifier) != position:
                raise InputValueError(f"{self.path / 'corpus.jsonl'} changed while it was being evaluated")
            yield text


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences, and how similar people find them."""

    name: str
    path: Path
    first: list[str]
    second: list[str]
    scores: list[float]


def find_datasets(paths: Sequence[str | os.PathLike[str]], split: str = "test") -> list[Retrieval | Pairs]:
    """Read data sets: each path is a BEIR folder, a tab-separated file, or a folder of such files.

    Raises:
        InputValueError: a file is broken, or a folder has no data set.
        OSError: a file cannot be read.
    """
    found: list[Retrieval | Pairs] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(read_pairs(path))
            continue
        tables = sorted(path.glob("*.tsv"))
        is_retrieval = any((path / name).exists() for name in ("corpus.jsonl", "queries.jsonl", "qrels"))
        if not is_retrieval and not tables:
            raise InputValueError(
                f"{path} has neither corpus.jsonl, queries.jsonl and qrels/{split}.tsv nor a file *.tsv"
            )
        if is_retrieval:
            found.append(read_retrieval(path, split))
        found += map(read_pairs, tables)
    return found


def read_retrieval(folder: str | os.PathLike[str], split: str = "test") -> Retrieval:
    """Read `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv` of a folder in BEIR's format.

    Raises:
        InputValueError: a line is broken, an id occurs twice, or a judgement names an id that does not exist.
        OSError: a file cannot be read.
    """
    folder = Path(folder)
    qrels = folder / "qrels" / f"{split}.tsv"
    documents: dict[str, int] = {}
    for line, identifier, _ in _documents(folder / "corpus.jsonl"):
        _add(documents, identifier, len(documents), folder / "corpus.jsonl", line)
    queries: dict[str, str] = {}
    for line, identifier, row in _objects(folder / "queries.jsonl"):
        _add(queries, identifier, _string(row, "text", folder / "queries.jsonl", line), folder / "queries.jsonl", line)
    relevance: dict[str, dict[str, int]] = {}
    for line, row in _table(qrels, _QRELS):
        query, document = row["query-id"], row["corpus-id"]
        where = f"{qrels}, line {line}"
        if query not in queries:
            raise InputValueError(f"{where}: there is no query {query!r} in queries.jsonl")
        if document not in documents:
            raise InputValueError(f"{where}: there is no document {document!r} in corpus.jsonl")
        if document in relevance.setdefault(query, {}):
            raise InputValueError(f"{where}: query {query!r} and document {document!r} are judged twice")
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", score := row["score"].strip()):
            raise InputValueError(f"{where}: the score must be a whole number of up to 9 digits, got {score!r:.80}")
        relevance[query][document] = int(score)
    if not relevance:
        raise InputValueError(f"{qrels} has no judgements")
    judged = {query: text for query, text in queries.items() if query in relevance}
    unjudged = len(queries) - len(judged)
    return Retrieval(folder.resolve().name, folder, judged, documents, relevance, unjudged)


def read_pairs(path: str | os.PathLike[str]) -> Pairs:
    """Read a tab-separated file whose header names the columns `score`, `sentence1` and `sentence2`, in any order.

    Quotation marks are part of the text, as in GLUE's files. Other columns do not matter.

    Raises:
        InputValueError: a line is broken, or there are no two different scores to rank.
        OSError: the file cannot be read.
    """
    path = Path(path)
    first, second, scores = [], [], []
    for line, row in _table(path, _PAIRS):
        try:
            score = float(row["score"])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise InputValueError(f"{path}, line {line}: the score must be a number, got {row['score']!r:.80}")
        for name in ("sentence1", "sentence2"):
            if not row[name].strip():
                raise InputValueError(f"{path}, line {line}: {name} is empty")
        scores.append(score)
        first.append(row["sentence1"])
        second.append(row["sentence2"])
    if len(set(scores)) < 2:
        raise InputValueError(f"{path} has no two pairs with different scores, so there is no order to compare")
    resolved = path.resolve()
    return Pairs(f"{resolved.parent.name}/{resolved.stem}", path, first, second, scores)


def _documents(path: Path) -> Iterator[tuple[int, str, str]]:
    """Iterate over line, id and text of a corpus."""
    for line, identifier, row in _objects(path):
        title = _string(row, "title", path, line) if row.get("title") is not None else ""
        yield line, identifier, f"{title} {_string(row, 'text', path, line)}".strip()


def _objects(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Iterate over line, id and object of a file of JSON lines."""
    for line, content in _lines(path):
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputValueError(f"{path}, line {line}: this is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputValueError(f"{path}, line {line}: expected an object, got {json_type(row)}")
        identifier = row.get("_id")
        if isinstance(identifier, int) and not isinstance(identifier, bool):
            identifier = row["_id"] = str(identifier)
        if not identifier:
            raise InputValueError(f"{path}, line {line}: the object has no _id")
        yield line, _string(row, "_id", path, line), row


def _table(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Iterate over line and fields of a tab-separated file whose header has the given columns."""
    header: list[str] | None = None
    for line, content in _lines(path):
        fields = content.split("\t")
        if header is None:
            header = fields
            if len(set(header)) < len(header) or not set(columns) <= set(header):
                raise InputValueError(
                    f"{path}, line {line}: the first line must name the columns {', '.join(columns)}, each once and "
                    f"with tabs between; it is {content!r:.80}"
                )
        elif len(fields) != len(header):
            raise InputValueError(f"{path}, line {line}: expected {len(header)} fields, got {len(fields)}")
        else:
            yield line, dict(zip(header, fields, strict=True))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Iterate over the lines of a UTF-8 file that are not blank, with their numbers from 1."""
    with path.open("rb") as stream:
        for line, content in enumerate(stream, 1):
            try:
                text = content.decode("utf-8-sig" if line == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputValueError(f"{path}, line {line}: this is not valid UTF-8 ({error.reason})") from error
            if text.strip():
                yield line, text


def _string(row: dict[str, Any], key: str, path: Path, line: int) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        what = f"is {json_type(value)}" if key in row else "is missing"
        raise InputValueError(f"{path}, line {line}: {key} {what}, expected a string")
    check_encodable(value, f"{path}, line {line}: {key}")
    return value


def _add(found: dict[str, Any], identifier: str, value: Any, path: Path, line: int) -> None:
    if identifier in found:
        raise InputValueError(f"{path}, line {line}: the id {identifier!r} occurs a second time")
    found[identifier] = value
