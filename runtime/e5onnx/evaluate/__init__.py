"""Evaluation of a model on your own data: retrieval in BEIR's format, and semantic similarity. Needs numpy alone.

`datasets.py` reads the files, `search.py` finds the best documents, `metrics.py` scores them, `evaluation.py` puts
these together, and `cli.py` is the command `e5onnx evaluate`. For MTEB's own tasks, see `e5onnx.integrations.mteb`.
"""

from __future__ import annotations

from .datasets import Pairs, Retrieval, find_datasets, read_pairs, read_retrieval
from .evaluation import Result, evaluate_pairs, evaluate_retrieval

__all__ = [
    "Pairs",
    "Result",
    "Retrieval",
    "evaluate_pairs",
    "evaluate_retrieval",
    "find_datasets",
    "read_pairs",
    "read_retrieval",
]
