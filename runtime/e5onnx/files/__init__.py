"""Embedding whole corpora, `e5onnx embed --output FOLDER`: extras `bulk` and `ray`.

inputs.py       files in: which, in what format, and that their bytes stay the same
records.py      files of lines and CSV -> records
parquet.py      files of Parquet -> tables
columns.py      which columns mean what, and types by name
texts.py        records -> texts to embed, and what is wrong with a record
values.py       values -> Arrow arrays, nothing lost
rows.py         a part's records -> its rows: texts, ids and kept columns
schema.py       whether the columns are there, and their types
plan.py         which records make up which part of the output
outputs.py      parts out: Parquet, or .npy beside JSON lines
job.py          the output folder: plan, notes of what is done, lock, summary
local.py        one machine: reading, running and writing side by side
ray_engine.py   many machines: the same parts on a pool of Ray actors
embed.py        `embed_files`, which puts these together
cli.py          the command's options
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError

if TYPE_CHECKING:
    from e5onnx.errors import IgnoredFilesWarning, JobChangedError, RowError

    from .columns import Columns
    from .embed import Summary, embed_files

__all__ = ["Columns", "IgnoredFilesWarning", "JobChangedError", "RowError", "Summary", "embed_files"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: the command line reads this package's options without the extra."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import columns, embed, inputs, texts
    except ModuleNotFoundError as error:
        if error.name not in ("pyarrow", "tqdm", "filelock"):
            raise
        raise MissingDependencyError("embedding into a folder needs more: pip install 'e5onnx[bulk]'") from error
    return next(getattr(module, name) for module in (embed, columns, inputs, texts) if hasattr(module, name))
