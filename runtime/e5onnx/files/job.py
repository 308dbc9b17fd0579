"""The output folder: its plan, its lock, notes of the parts that are done, and what a run after a crash finds there.

    FOLDER/part-000000.parquet ...          the output
    FOLDER/_e5onnx/plan.json                what is embedded how, which records make up which part, and their bytes
    FOLDER/_e5onnx/done/part-000000.json    a note for every part that is done
    FOLDER/_e5onnx/rejects.jsonl            rows that could not be embedded
    FOLDER/_e5onnx/summary.json             at the end

A part is done when its note is there, which is written after the part is on the disk. It names the plan by its SHA-256,
and holds the SHA-256 of the part's files, which are read again when a run goes on. Plan and notes hold their own. What
is not as noted is written anew, and comes out the same.
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
from ..errors import InputValueError, JobChangedError, JobLockError, JobRunningError
from .columns import Columns
from .inputs import JOB_FOLDER, Format, InputFile
from .outputs import DType, OutputFormat, sha256_of, sync
from .plan import Part, Piece
from .records import Place
from .texts import Reject

_FORMAT = 3


@dataclass(frozen=True)
class Settings:
    """All that decides on the bytes of the output, beside the input."""

    checkpoint: str
    revision: str | None
    fingerprint: str
    dimension: int
    role: str
    prompt: str
    columns: Columns
    truncate: str
    input_format: Format | None
    output_format: OutputFormat
    dtype: DType
    part_rows: int

    def to_json(self) -> dict[str, Any]:
        """Return it as values of JSON."""
        return {**asdict(replace(self, columns=Columns())), "columns": self.columns.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Settings:
        """Return what :meth:`to_json` wrote."""
        return cls(**{**content, "columns": Columns.from_json(content["columns"])})

    def readable(self) -> dict[str, object]:
        """Return every setting by the name that a message gives it."""
        columns = {f"columns.{name}": value for name, value in vars(self.columns).items()}
        types = ", ".join(f"{name}: {kind}" for name, kind in self.columns.types)
        return {**vars(self), "columns": None, **columns, "columns.types": types}

    def metadata(self) -> dict[str, str]:
        """Return what a Parquet file says of its vectors."""
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
    """What is embedded, which records make up which part, and how; `sha256` is that of all this."""

    files: list[InputFile]
    parts: list[Part]
    settings: Settings
    sha256: str


@dataclass(frozen=True)
class Done:
    """A part that is done: rows, tokens, texts cut, the rows that were rejected, and the SHA-256 of its files."""

    part: int
    rows: int
    tokens: int
    truncated: int
    rejects: tuple[Reject, ...]
    files: dict[str, str]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Done:
        """Return what `asdict` made JSON of."""
        return cls(**{**content, "rejects": tuple(Reject(**each) for each in content["rejects"])})


def part_name(number: int) -> str:
    """Return the name of a part's files, without suffix."""
    return f"part-{number:06d}"


class Job:
    """One output folder, while a process writes into it: made within :func:`opened_folder`, with its plan written."""

    def __init__(self, folder: Path, plan: Plan, *, advance: Callable[[int], object] = lambda parts: None) -> None:
        """Find the parts that are done; `advance` is told of them."""
        self.folder = folder
        self.plan = plan
        notes = _inside(folder) / "done"
        notes.mkdir(exist_ok=True)
        for where in (folder, _inside(folder), notes):
            for left_behind in where.glob(".*.partial"):  # by a process that was killed
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
        """Write that a part is done, and have it on the disk."""
        _write_sealed(self._note(done.part), {"plan": self.plan.sha256, "done": asdict(done)})
        self._done.add(done.part)

    def write_rejects(self) -> Path | None:
        """Write the rows that were rejected so far, in the order of the input; None if there are none."""
        path = _inside(self.folder) / "rejects.jsonl"
        number = 0
        with written_whole(path) as temporary, temporary.open("x", encoding="utf-8") as stream:
            for done in self.done():
                for reject in done.rejects:
                    stream.write(reject.line())
                    number += 1
        if number:
            return path
        path.unlink()
        return None

    def write_summary(self, content: dict[str, Any]) -> None:
        """Write the summary, which says that all is done."""
        _write_json(_inside(self.folder) / "summary.json", content)

    def remove_summary(self) -> None:
        """Remove the summary, as not all is done."""
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
    """Make an output folder where there is none, and keep other processes out of it meanwhile.

    Raises:
        JobRunningError: another process is in it.
        JobLockError: it cannot be locked.
        InputValueError: the folder holds something else.
    """
    inside = _inside(folder)
    if not inside.is_dir():
        if folder.exists() and (not folder.is_dir() or any(each.name != JOB_FOLDER for each in folder.iterdir())):
            raise InputValueError(f"{folder} is not an output folder of e5onnx, and not empty: name another one")
        inside.mkdir(parents=True, exist_ok=True)
    # a soft lock, which file systems without locks would get, outlives a process that is killed
    lock = FileLock(inside / "lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise JobRunningError(f"another process writes into {folder}: wait for it, or name another folder") from error
    except (OSError, NotImplementedError) as error:
        raise JobLockError(
            f"{folder} cannot be locked, as it is while it is written: {error}: make it writable, or name a folder on "
            "another file system"
        ) from error
    try:
        yield folder
    finally:
        lock.release()


def read_plan(folder: Path) -> Plan | None:
    """Return the plan of an output folder; None if it has none yet.

    Raises:
        InputValueError: the plan is damaged, or lost.
        JobChangedError: another version wrote it.
    """
    path = _inside(folder) / "plan.json"
    try:
        content = _read_sealed(path)
        files = [InputFile.from_json(each) for each in content["files"]]
        parts = [
            Part(number, first, tuple(Piece(file, Place(*place), rows) for file, place, rows in pieces))
            for number, (first, pieces) in enumerate(content["parts"])
        ]
        return Plan(files, parts, Settings.from_json(content["settings"]), content["sha256"])
    except FileNotFoundError:
        if any(folder.glob("part-*")):
            raise InputValueError(f"{folder} holds parts, and {path} is lost: name another output folder") from None
        return None
    except JobChangedError:
        raise
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise InputValueError(f"{path} is damaged: name another output folder") from error


def write_plan(folder: Path, files: Sequence[InputFile], parts: Sequence[Part], settings: Settings) -> Plan:
    """Write the plan of an output folder, and return it."""
    content = {
        "settings": settings.to_json(),
        "files": [file.to_json() for file in files],
        "parts": [[part.first, part.pieces] for part in parts],
    }
    return Plan(list(files), list(parts), settings, _write_sealed(_inside(folder) / "plan.json", content))


def check_unchanged(folder: Path, planned: Settings, settings: Settings) -> None:
    """Raise JobChangedError if the settings are not those of the plan."""
    begun = planned.readable()
    changed = [
        f"{name}: {begun[name]!r}, now {value!r}" for name, value in settings.readable().items() if begun[name] != value
    ]
    if changed:
        raise JobChangedError(
            f"{folder} was begun with other options ({'; '.join(changed)}): name another output folder"
        )


def _inside(folder: Path) -> Path:
    return folder / JOB_FOLDER


def _read_sealed(path: Path) -> dict[str, Any]:
    """Return JSON that holds its own SHA-256.

    Raises:
        ValueError, TypeError, KeyError: it is damaged.
    """
    content: dict[str, Any] = json.loads(path.read_bytes())
    if content["format"] != _FORMAT:
        raise JobChangedError(f"{path} was written by another version of e5onnx: name another output folder")
    if content["sha256"] != _seal(content):
        raise ValueError("its SHA-256 is another one")
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
