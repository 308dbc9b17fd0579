"""LanceDB: the embedding function "e5onnx" of its registry. Needs the extra `lancedb`.

Import this module before you open a table that was made with it: the import registers the function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoder import Encoder, Precision, Provider
from ..errors import MissingDependencyError
from .encoders import EncoderArguments, shared_encoder

try:
    from lancedb.embeddings.base import TextEmbeddingFunction
    from lancedb.embeddings.registry import register
    from pydantic import ConfigDict, PrivateAttr, StrictInt
except ImportError as error:
    raise MissingDependencyError("the integration for LanceDB needs more: pip install 'e5onnx[lancedb]'") from error


@register("e5onnx")
class E5OnnxEmbeddings(TextEmbeddingFunction):
    """Embeds the source column with the model's prompt for documents, and query texts with that for queries.

    LanceDB keeps the arguments of `create` with the table, and this class adds the fingerprint: a table cannot be
    searched with a model that gives other vectors. A row without a text gets no vector, and LanceDB's `on_bad_vectors`
    decides about it. Fields are the arguments of :class:`e5onnx.Encoder`.

    Example:
        >>> from lancedb.embeddings import get_registry
        >>> function = get_registry().get("e5onnx").create(model="models/sample")
        >>> function.ndims()
        384
    """

    model_config = ConfigDict(extra="forbid")  # the base ignores a mistyped argument

    model: str
    precision: Precision | None = None
    provider: Provider = "cpu"
    threads: int | None = None
    revision: str | None = None
    local_files_only: bool = False
    truncate_dim: StrictInt | None = None
    force_truncate_dim: bool = False
    fingerprint: str | None = None

    _encoder: Encoder = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        """Load the model, or share the one that this process has loaded."""
        super().__init__(**fields)
        self._encoder = shared_encoder(
            self.model,
            fingerprint=self.fingerprint,
            **{name: getattr(self, name) for name in EncoderArguments.__annotations__},
        )

    def ndims(self) -> int:
        """Return the dimension of the vectors."""
        return self._encoder.dimension

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> list[NDArray[np.float32]]:
        """Embed a query."""
        return list(self._encoder.encode_query(self.sanitize_input(query)))

    def generate_embeddings(self, texts: Sequence[str | None], *args: Any, **kwargs: Any) -> list[Any]:
        """Embed texts of the source column."""
        vectors = iter(self._encoder.encode_document([text for text in texts if text is not None]))
        return [None if text is None else next(vectors) for text in texts]

    # The base tries again for minutes, in case a server is busy, and hides what happened.

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[NDArray[np.float32]]:
        """Embed a query, once: an error here does not go away."""
        return self.compute_query_embeddings(*args, **kwargs)

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Embed texts of the source column, once."""
        vectors: list[Any] = self.compute_source_embeddings(*args, **kwargs)
        return vectors

    def safe_model_dump(self) -> dict[str, Any]:
        """Return what LanceDB keeps with a table."""
        return {**super().safe_model_dump(), "fingerprint": self._encoder.fingerprint}
