"""Embedding whole corpora, `e5onnx embed --output FOLDER`: extras `bulk` and `ray`.

cli.py          the command and its options
embed.py        `embed_files`, the function that does it all
job.py          the output folder on disk: plan, notes of finished parts, lock, summary
plan.py         which records make up which part
engines.py      embed the parts: on this machine, or on a Ray cluster
inputs.py       find input files, and notice when their bytes change
records.py      files -> records: lines, CSV, Parquet
columns.py      what each column is for
rows.py         records of a part -> texts, ids and kept columns
values.py       values -> Arrow arrays, with nothing lost
outputs.py      write a part: Parquet, or .npy and JSON lines
texts.py        the texts of files read once, for output that is not a folder
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import errors
from ..errors import MissingDependencyError

if TYPE_CHECKING:
    from e5onnx.errors import IgnoredFilesWarning, JobChangedError, RowError

    from .columns import Columns
    from .embed import Summary, embed_files

__all__ = ["Columns", "IgnoredFilesWarning", "JobChangedError", "RowError", "Summary", "embed_files"]


def __getattr__(name: str) -> Any:
    """Import a name on first use: the command line reads its options without the extra."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import columns, embed
    except ModuleNotFoundError as error:
        if error.name not in ("pyarrow", "filelock"):
            raise
        raise MissingDependencyError("embedding into a folder needs more: pip install 'e5onnx[bulk]'") from error
    return next(getattr(module, name) for module in (embed, columns, errors) if hasattr(module, name))
