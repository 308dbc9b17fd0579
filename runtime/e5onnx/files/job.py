"""The output folder: its plan, its journal, its lock, and what a run after a crash finds there.

    FOLDER/part-000000.parquet ...     the output
    FOLDER/_e5onnx/plan.json           what is embedded how, and which records make up which part
    FOLDER/_e5onnx/journal.jsonl       a line for every part that is done
    FOLDER/_e5onnx/rejects.jsonl       rows that could not be embedded
    FOLDER/_e5onnx/summary.json        at the end

A part counts as done when its line is in the journal, which is written after the part is on the disk. Whatever else is
found is written anew, and comes out the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..atomic import written_whole
from ..errors import E5OnnxError, InputValueError
from .columns import Columns
from .inputs import JOB_FOLDER, Format, InputFile, JobChangedError
from .outputs import DType, OutputFormat, sync
from .plan import Part, Piece
from .records import Place
from .rows import Reject

_FORMAT = 2


class JobRunningError(E5OnnxError, OSError):
    """Another process writes into the output folder."""


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


@dataclass(frozen=True)
class Done:
    """A part that is done: rows, tokens and texts cut, the rows that were rejected, and its files with their sizes."""

    part: int
    rows: int
    tokens: int
    truncated: int
    rejects: tuple[Reject, ...]
    files: dict[str, int]

    def line(self) -> str:
        """Return it as a line of the journal."""
        return json.dumps(asdict(self), ensure_ascii=True) + "\n"

    @classmethod
    def from_line(cls, line: str | bytes) -> Done:
        """Return what a line of the journal says."""
        content = json.loads(line)
        return cls(**{**content, "rejects": tuple(Reject(**each) for each in content["rejects"])})


def part_name(number: int) -> str:
    """Return the name of a part's files, without suffix."""
    return f"part-{number:06d}"


class Job:
    """One output folder, while a process writes into it; :func:`opened_job` makes it."""

    def __init__(self, folder: Path, files: Sequence[InputFile], parts: Sequence[Part], settings: Settings) -> None:
        """Read the journal of a folder whose plan is written."""
        self.folder = folder
        self.files = files
        self.parts = parts
        self.settings = settings
        self._places: dict[int, int] = {}  # part -> where its line begins in the journal
        self._journal_path = _inside(folder) / "journal.jsonl"
        self._journal = self._journal_path.open("ab+")
        for where in (folder, _inside(folder)):
            for left_behind in where.glob(".*.partial"):  # by a process that was killed
                left_behind.unlink(missing_ok=True)
        self._read_journal()

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def todo(self) -> list[Part]:
        """Return the parts that are not done."""
        return [part for part in self.parts if part.number not in self._places]

    def done(self) -> Iterator[Done]:
        """Yield the parts that are done, in order."""
        for number in sorted(self._places):
            self._journal.seek(self._places[number])
            yield Done.from_line(self._journal.readline())

    def note(self, done: Done) -> None:
        """Write that a part is done, and have it on the disk."""
        place = self._journal.seek(0, os.SEEK_END)
        try:
            self._journal.write(done.line().encode())
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError:
            self._journal = self._journal_path.open("ab+")  # what was not written must not be written later
            self._journal.truncate(place)
            raise
        self._places[done.part] = place

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

    def _read_journal(self) -> None:
        """Take the lines of parts that are there; what follows a line that was cut off, or is damaged, is dropped."""
        self._journal.seek(0)
        place = 0
        for line in self._journal:
            if not line.endswith(b"\n"):
                break
            try:
                done = Done.from_line(line)
            except (ValueError, TypeError, KeyError):
                break
            if all(_size(self.folder / name) == size for name, size in done.files.items()):
                self._places[done.part] = place
            place += len(line)
        self._journal.truncate(place)


@contextmanager
def opened_folder(folder: Path) -> Iterator[Path]:
    """Make an output folder where there is none, and keep other processes out of it meanwhile.

    Raises:
        JobRunningError: another process is in it.
        InputValueError: the folder holds something else.
    """
    inside = _inside(folder)
    if not inside.is_dir():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputValueError(f"{folder} is no output folder of e5onnx, and not empty: name another one")
        inside.mkdir(parents=True)
    with (inside / "lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError as error:
            raise JobRunningError(
                f"another process writes into {folder}: wait for it, or name another folder"
            ) from error
        yield folder


def read_plan(folder: Path) -> tuple[list[InputFile], list[Part], Settings] | None:
    """Return files, parts and settings of an output folder; None if it has no plan yet.

    Raises:
        InputValueError: the plan is damaged.
        JobChangedError: another version wrote it.
    """
    path = _inside(folder) / "plan.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise JobChangedError(f"{folder} was written by another version of e5onnx: name another output folder")
        files = [InputFile(**each) for each in content["files"]]
        parts = [
            Part(number, first, tuple(Piece(file, Place(*place), rows) for file, place, rows in pieces))
            for number, (first, pieces) in enumerate(content["parts"])
        ]
        return files, parts, Settings.from_json(content["settings"])
    except FileNotFoundError:
        return None
    except JobChangedError:
        raise
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise InputValueError(f"{path} is damaged: name another output folder") from error


def write_plan(folder: Path, files: Sequence[InputFile], parts: Sequence[Part], settings: Settings) -> None:
    """Write the plan of an output folder."""
    content = {
        "format": _FORMAT,
        "settings": settings.to_json(),
        "files": [asdict(file) for file in files],
        "parts": [[part.first, part.pieces] for part in parts],
    }
    _write_json(_inside(folder) / "plan.json", content)


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


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        sync(temporary)
    sync(path.parent)
