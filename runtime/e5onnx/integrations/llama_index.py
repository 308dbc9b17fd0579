"""LlamaIndex: `E5OnnxEmbedding`, for indexes and ingestion pipelines. Needs the extra `llama-index`."""

from __future__ import annotations

import asyncio
from typing import Any

from ..encoder import Encoder, Precision, Provider
from ..errors import InputValueError, MissingDependencyError
from .encoders import EncoderArguments, document_vectors, query_vector, shared_encoder

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from pydantic import ConfigDict, Field, PrivateAttr
except ImportError as error:
    raise MissingDependencyError(
        "the integration for LlamaIndex needs more: pip install 'e5onnx[llama-index]'"
    ) from error


class E5OnnxEmbedding(BaseEmbedding):
    """Embeds queries with the model's prompt for queries, and texts and nodes with that for documents.

    The asynchronous methods run in a thread. `to_dict` and `from_dict` keep the arguments.

    Example:
        >>> embedding = E5OnnxEmbedding(model_name="models/sample")
        >>> len(embedding.get_query_embedding("how much protein should a female eat"))
        384
    """

    model_config = ConfigDict(extra="forbid")  # the base ignores a mistyped argument

    model_name: str = Field(description="A model folder, a checkpoint's folder, or the hub id of either.")
    precision: Precision | None = Field(default=None, description="As for e5onnx.Encoder.")
    provider: Provider = Field(default="cpu", description="As for e5onnx.Encoder.")
    threads: int | None = Field(default=None, description="As for e5onnx.Encoder.")
    revision: str | None = Field(default=None, description="As for e5onnx.Encoder.")
    local_files_only: bool = Field(default=False, description="As for e5onnx.Encoder.")
    truncate_dim: int | None = Field(default=None, description="As for e5onnx.Encoder.", strict=True)
    force_truncate_dim: bool = Field(default=False, description="As for e5onnx.Encoder.")
    # The encoder sorts texts by length and makes its own batches: the base's batches of 10 leave it nothing to sort.
    embed_batch_size: int = Field(default=2048, description="Texts per call of the encoder.", gt=0, le=2048)

    _encoder: Encoder = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        """Load the model, or share the one that this process has loaded."""
        super().__init__(**fields)
        self._encoder = shared_encoder(
            self.model_name, **{name: getattr(self, name) for name in EncoderArguments.__annotations__}
        )
        prompt_for = self._encoder.tokenizer.prompt_for
        if self.embeddings_cache is not None and prompt_for("query") != prompt_for("document"):
            raise InputValueError(
                "embeddings_cache holds one vector per text, but this model has different vectors for the same text as "
                "a query and as a document. Leave it out; an IngestionPipeline(cache=...) keeps nodes instead"
            )

    @classmethod
    def class_name(cls) -> str:
        """Return the name that `to_dict` writes."""
        return "E5OnnxEmbedding"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "__pydantic_private__": None}  # unpickled with its arguments, it shares again

    def _get_query_embedding(self, query: str) -> list[float]:
        return query_vector(self._encoder, query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return document_vectors(self._encoder, [text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return document_vectors(self._encoder, texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
