"""LangChain: `E5OnnxEmbeddings`, for every vector store and retriever. Needs the extra `langchain`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import MissingDependencyError
from .encoders import EncoderArguments, all_arguments, document_vectors, query_vector, shared_encoder

if TYPE_CHECKING:
    from typing_extensions import Unpack

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise MissingDependencyError("the integration for LangChain needs more: pip install 'e5onnx[langchain]'") from error


class E5OnnxEmbeddings(Embeddings):
    """Embeds queries with the model's prompt for queries, and documents with that for documents.

    The asynchronous methods, `aembed_query` and `aembed_documents`, run in a thread.

    Attributes:
        encoder: the :class:`e5onnx.Encoder`. Its fingerprint is the right `namespace` of a `CacheBackedEmbeddings`.

    Example:
        >>> embeddings = E5OnnxEmbeddings("models/sample")
        >>> len(embeddings.embed_query("how much protein should a female eat"))
        384
    """

    def __init__(self, model: str | os.PathLike[str], **arguments: Unpack[EncoderArguments]) -> None:
        """Load a model, or share the one that this process has loaded; arguments as for :class:`e5onnx.Encoder`."""
        self.encoder = shared_encoder(model, **all_arguments(**arguments))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents."""
        return document_vectors(self.encoder, texts)

    def embed_query(self, text: str) -> list[float]:
        """Embed a query."""
        return query_vector(self.encoder, text)
