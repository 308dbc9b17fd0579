"""The output folder: its plan, its lock, a note for each finished part, and how a run resumes from them.

    FOLDER/part-000000.parquet ...          the output
    FOLDER/_e5onnx/plan.json                the options, the input with its hashes, and the records of each part
    FOLDER/_e5onnx/done/part-000000.json    a note for each finished part
    FOLDER/_e5onnx/rejects.jsonl            rows that could not be embedded
    FOLDER/_e5onnx/summary.json             written at the end

A part is done once its note exists, which is written after the part is on disk. The note holds the SHA-256 of the plan
and of the part's files, which a resumed run reads and compares. Plan and notes each end with their own SHA-256. A part
that differs from its note is written again, with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from filelock import FileLock, Timeout

from ..atomic import written_whole
from ..errors import InputValueError, JobChangedError, JobLockError, JobRunningError, in_one_line
from .columns import Columns
from .inputs import JOB_FOLDER, Format, InputFile
from .outputs import DType, OutputFormat, sha256_of, sync
from .plan import Part, Piece
from .records import Place, Reject

_FORMAT = 4


@dataclass(frozen=True)
class JobOptions:
    """Everything besides the input that determines the bytes of the output."""

    checkpoint: str
    revision: str | None
    precision: str
    provider: str
    fingerprint: str
    dimension: int
    role: str
    prompt: str
    columns: Columns
    truncate: str
    input_format: Format | None
    output_format: OutputFormat
    dtype: DType
    ranges: list[list[float]] | None
    part_rows: int

    def to_json(self) -> dict[str, Any]:
        """Return a value that JSON can hold."""
        return {**asdict(replace(self, columns=Columns())), "columns": self.columns.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> JobOptions:
        """Read what :meth:`to_json` returned."""
        return cls(**{**content, "columns": Columns.from_json(content["columns"])})

    def readable(self) -> dict[str, object]:
        """Return every option by its name in messages."""
        columns = {f"columns.{name}": value for name, value in vars(self.columns).items()}
        types = ", ".join(f"{name}: {kind}" for name, kind in self.columns.types)
        ranges = self.ranges and hashlib.sha256(json.dumps(self.ranges).encode()).hexdigest()[:12]
        return {**vars(self), "columns": None, **columns, "columns.types": types, "ranges": ranges}

    def metadata(self) -> dict[str, str]:
        """Return the metadata of a Parquet file of vectors."""
        return {
            "e5onnx.checkpoint": self.checkpoint,
            "e5onnx.revision": self.revision or "",
            "e5onnx.fingerprint": self.fingerprint,
            "e5onnx.dimension": str(self.dimension),
            "e5onnx.role": self.role,
            "e5onnx.prompt": self.prompt,
            "e5onnx.dtype": self.dtype,
        }


class Plan(NamedTuple):
    """The input, its parts and the options; `sha256` covers all of it."""

    files: list[InputFile]
    parts: list[Part]
    options: JobOptions
    sha256: str


@dataclass(frozen=True)
class Done:
    """A finished part: its rows, tokens, cut texts and rejects, and the SHA-256 of each of its files."""

    part: int
    rows: int
    tokens: int
    truncated: int
    rejects: tuple[Reject, ...]
    files: dict[str, str]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Done:
        """Read what `asdict` returned."""
        return cls(**{**content, "rejects": tuple(Reject(**each) for each in content["rejects"])})


def part_name(number: int) -> str:
    """Return the name of a part's files, without a suffix."""
    return f"part-{number:06d}"


class Job:
    """An output folder that this process writes into, within :func:`opened_folder` and after :func:`write_plan`."""

    def __init__(self, folder: Path, plan: Plan, *, advance: Callable[[int], object] = lambda parts: None) -> None:
        """Find the parts that are done; `advance` is called for each."""
        self.folder = folder
        self.plan = plan
        notes = _inside(folder) / "done"
        notes.mkdir(exist_ok=True)
        for where in (folder, _inside(folder), notes):
            for left_behind in where.glob(".*.partial"):  # by a killed process
                left_behind.unlink(missing_ok=True)
        self._done: set[int] = set()
        for part in plan.parts:
            if self._is_done(part.number):
                self._done.add(part.number)
                advance(1)

    def todo(self) -> list[Part]:
        """Return the parts that are not done."""
        return [part for part in self.plan.parts if part.number not in self._done]

    def done(self) -> Iterator[Done]:
        """Yield the parts that are done, in order."""
        for number in sorted(self._done):
            yield Done.from_json(_read_sealed(self._note(number))["done"])

    def note(self, done: Done) -> None:
        """Write the note of a part to disk."""
        _write_sealed(self._note(done.part), {"plan": self.plan.sha256, "done": asdict(done)})
        self._done.add(done.part)

    def write_rejects(self) -> None:
        """Write the rows rejected so far, in input order, if there are any."""
        path = _inside(self.folder) / "rejects.jsonl"
        with written_whole(path) as temporary, temporary.open("x", encoding="utf-8") as stream:
            stream.writelines(reject.to_line() for done in self.done() for reject in done.rejects)
        if not path.stat().st_size:
            path.unlink()

    def write_summary(self, content: dict[str, Any]) -> None:
        """Write the summary, which marks the folder as complete."""
        _write_json(_inside(self.folder) / "summary.json", content)

    def remove_summary(self) -> None:
        """Remove the summary while parts are missing."""
        (_inside(self.folder) / "summary.json").unlink(missing_ok=True)

    def _note(self, number: int) -> Path:
        return _inside(self.folder) / "done" / f"{part_name(number)}.json"

    def _is_done(self, number: int) -> bool:
        try:
            content = _read_sealed(self._note(number))
            return (
                content["plan"] == self.plan.sha256
                and content["done"]["part"] == number
                and all(sha256_of(self.folder / name) == digest for name, digest in content["done"]["files"].items())
            )
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return False


@contextmanager
def opened_folder(folder: Path) -> Iterator[Path]:
    """Create an output folder if there is none, and keep other processes out of it inside the block.

    Raises:
        JobRunningError: another process writes into it.
        JobLockError: it cannot be locked.
        InputValueError: it contains something else.
    """
    inside = _inside(folder)
    if not inside.is_dir():
        if folder.exists() and (not folder.is_dir() or any(each.name != JOB_FOLDER for each in folder.iterdir())):
            raise InputValueError(f"{folder} is not empty and is not an output folder of e5onnx: name another folder")
        inside.mkdir(parents=True, exist_ok=True)
    # the soft lock for file systems without locks would outlive a killed process
    lock = FileLock(inside / "lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise JobRunningError(f"another process is writing into {folder}: wait, or name another folder") from error
    except (OSError, NotImplementedError) as error:
        raise JobLockError(
            f"{folder} cannot be locked for writing ({in_one_line(error)}): make it writable, or name a folder on "
            "another file system"
        ) from error
    try:
        yield folder
    finally:
        lock.release()


def read_plan(folder: Path) -> Plan | None:
    """Return the plan of an output folder; None if it has none yet.

    Raises:
        InputValueError: the plan is damaged or missing.
        JobChangedError: another version of e5onnx wrote it.
    """
    path = _inside(folder) / "plan.json"
    try:
        content = _read_sealed(path)
        files = [InputFile.from_json(each) for each in content["files"]]
        parts = [
            Part(number, first, tuple(Piece(file, Place(*place), rows) for file, place, rows in pieces))
            for number, (first, pieces) in enumerate(content["parts"])
        ]
        return Plan(files, parts, JobOptions.from_json(content["settings"]), content["sha256"])
    except FileNotFoundError:
        if any(folder.glob("part-*")):
            raise InputValueError(f"{folder} has parts but {path} is missing: name another output folder") from None
        return None
    except JobChangedError:
        raise
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise InputValueError(f"{path} is damaged: name another output folder") from error


def write_plan(folder: Path, files: Sequence[InputFile], parts: Sequence[Part], options: JobOptions) -> Plan:
    """Write the plan of an output folder, and return it."""
    content = {
        "settings": options.to_json(),
        "files": [file.to_json() for file in files],
        "parts": [[part.first, part.pieces] for part in parts],
    }
    return Plan(list(files), list(parts), options, _write_sealed(_inside(folder) / "plan.json", content))


def check_unchanged(folder: Path, planned: JobOptions, options: JobOptions) -> None:
    """Raise JobChangedError if the options differ from those of the plan."""
    begun, now = planned.readable(), options.readable()
    changed = [name for name, value in now.items() if begun[name] != value]
    if not changed:
        return
    if changed != ["fingerprint"]:  # which follows from the others
        changed = [name for name in changed if name != "fingerprint"]
    differences = ", ".join(f"{name} {begun[name]!r}, now {now[name]!r}" for name in changed)
    raise JobChangedError(f"{folder} was started with {differences}: name another output folder")


def _inside(folder: Path) -> Path:
    return folder / JOB_FOLDER


def _read_sealed(path: Path) -> dict[str, Any]:
    """Read JSON that contains its own SHA-256.

    Raises:
        ValueError, TypeError, KeyError: it is damaged.
    """
    content: dict[str, Any] = json.loads(path.read_bytes())
    if content["format"] != _FORMAT:
        raise JobChangedError(f"{path} was written by another version of e5onnx: name another output folder")
    if content["sha256"] != _seal(content):
        raise ValueError("its SHA-256 is wrong")
    return content


def _write_sealed(path: Path, content: dict[str, Any]) -> str:
    content = {"format": _FORMAT, **content}
    digest = _seal(content)
    _write_json(path, {**content, "sha256": digest})
    return digest


def _seal(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        sync(temporary)
    sync(path.parent)
