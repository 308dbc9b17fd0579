"""Records of lines, CSV and Parquet, whole or damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import content, rejects
from e5onnx import Encoder, InputValueError
from e5onnx.files import Columns, RowError, embed_files, records
from e5onnx.files.inputs import describe_file
from e5onnx.files.plan import plan_parts
from e5onnx.files.records import read_records
from e5onnx.files.rows import RowReader


def test_blank_lines_before_a_part_count_as_lines(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n\n{"text": "a"}\n{"text": "b"}\n\n\n{"text": 1}\n')
    with pytest.raises(RowError, match="line 7: "):
        embed_files(encoder, [path], tmp_path / "out", part_rows=2)


def test_a_stray_quote_says_what_it_took_in(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,n\nfine,1\n"open,2\n' + b"fine,3\n" * 40)
    with pytest.raises(
        InputValueError, match=r"row 2: not valid CSV: .* It spans 41 lines, 3 to 43, probably because a quote"
    ):
        embed_files(encoder, [tmp_path / "a.csv"], tmp_path / "out", on_error="skip")
    (tmp_path / "two.csv").write_bytes(b'text,n\nfine,1\n"open,2\nfine"\nfine,4\n')
    with pytest.raises(InputValueError, match=r"It spans 2 lines, 3 to 4,"):
        embed_files(encoder, [tmp_path / "two.csv"], tmp_path / "two", on_error="skip")
    (tmp_path / "b.csv").write_bytes(b'text,n\nfine,1\n"open,2\nfine,3\nfine"\nfine,4\n')
    with pytest.raises(
        InputValueError, match=r"row 2: its number of fields is 1, not 2 as in the header\. It spans 3 lines, 3 to 5,"
    ):
        embed_files(encoder, [tmp_path / "b.csv"], tmp_path / "other", part_rows=1, on_error="skip")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"text,n\nfine,1\n" + b"long " * 20 + b",2\nfine,3\n"),
        ("a.txt", b"fine\n" + b"long " * 20 + b"\nfine\n"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "' + b"long " * 20 + b'"}\n{"text": "fine"}\n'),
    ],
)
def test_a_record_has_a_largest_size(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.setattr("e5onnx.files.records.RECORD_BYTES", 60)
    (tmp_path / name).write_bytes(content)
    summary = embed_files(encoder, [str(tmp_path / name)], tmp_path / "out", on_error="skip", part_rows=2)
    (reject,) = rejects(tmp_path / "out")
    assert (reject["row"], summary.rows) == (2, 2)
    assert "it has more than" in reject["reason"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1 no", "is damaged"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000, mtime=0)[:40], "is damaged"),
        ("a.jsonl.zst", b"nothing like it", "is damaged"),
        ("a.csv", b"a,b\n1,2\n", "has no column 'text'; it has 'a', 'b'"),
        ("a.csv", b"text,text\n1,2\n", "has two columns with the same name"),
        ("a.csv", b"text\rfoo\rbar\r", "is damaged"),
        ("a.csv", b'"text"b,c\n1,2\n', "is damaged"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 50, "is damaged"),
        ("a.json", b'\xef\xbb\xbf[{"text": "a"},\n{"text": "b"}]\n', "is one JSON array"),
        ("a.jsonl", b'\n[\n{"text": "a"}\n]\n', "is one JSON array"),
        ("a.bin", b"", "the name of .* does not tell its format"),
    ],
)
def test_what_is_wrong_with_a_file_is_reported(
    encoder: Encoder, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputValueError, match=message):
        embed_files(encoder, [str(tmp_path / name)], tmp_path / "out")


def test_a_page_that_differs_from_its_checksum_is_noticed(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": ["spam and eggs"]}),
        path,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    embed_files(encoder, [path], tmp_path / "out")
    path.write_bytes(path.read_bytes().replace(b"spam", b"spat"))
    with pytest.raises(InputValueError, match=r"a\.parquet is damaged"):
        embed_files(encoder, [path], tmp_path / "other")


ROWS = [{"text": f"row {number}"} for number in range(20)]


@pytest.mark.parametrize(
    ("name", "function", "times"), [("a.jsonl.gz", "read_records", 2), ("a.parquet", "read_batches", 4)]
)
def test_a_file_stays_open_for_parts_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, function: str, times: int
) -> None:
    path = tmp_path / name
    path.write_bytes(content(name, ROWS))
    files = [describe_file(path)]
    parts = plan_parts(files, part_rows=3)
    opened = Mock(wraps=getattr(records, function))
    monkeypatch.setattr(records, function, opened)
    reader = RowReader(files, Columns())
    for position in (0, 1, 3, 6, 2):  # a compressed file is read on to the next part, and only 2 is before the last
        assert reader.read(parts[position]).texts == [row["text"] for row in ROWS[3 * position : 3 * position + 3]]
    assert opened.call_count == times


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("damage", ["another header", "cut", "text"])
def test_damage_after_the_first_compressed_stream_is_noticed(tmp_path: Path, suffix: str, damage: str) -> None:
    first, second = (COMPRESSORS[suffix](content("a.jsonl", [{"text": text}])) for text in "ab")
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(first + second)
    assert [record.content for record in read_records(describe_file(path))] == [b'{"text": "a"}\n', b'{"text": "b"}\n']
    rest = {"another header": b"?" + second[1:], "cut": second[:-1], "text": b"not compressed"}[damage]
    path.write_bytes(first + rest)
    with pytest.raises(InputValueError, match=f"{path} is damaged"):
        list(read_records(describe_file(path)))


@pytest.mark.parametrize("suffix", COMPRESSORS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_compressed_streams_are_read_to_their_end(suffix: str, data: st.DataObject) -> None:
    contents = data.draw(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
    large = data.draw(st.binary(min_size=1, max_size=5)) * 2**17
    padding = b"\0" * data.draw(st.sampled_from([0, 4, 2**17]))
    compressed = [COMPRESSORS[suffix](each) for each in (*contents, large)]
    with records._DECOMPRESSORS[suffix](io.BytesIO(padding.join([*compressed, b""]))) as stream:
        assert stream.read() == b"".join([*contents, large])
    cut = data.draw(st.integers(1, len(compressed[-1]) - 1))
    with (
        pytest.raises((EOFError, gzip.BadGzipFile)),
        records._DECOMPRESSORS[suffix](io.BytesIO(b"".join(compressed)[:-cut])) as stream,
    ):
        stream.read()
