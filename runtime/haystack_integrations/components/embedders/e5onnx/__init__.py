"""Haystack: `E5OnnxTextEmbedder` for queries and `E5OnnxDocumentEmbedder`. Needs the extra `haystack`.

They are here and not in `e5onnx` because Haystack loads pipelines only from classes of a few packages, and
`haystack_integrations` is one.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from e5onnx.encoder import Encoder
from e5onnx.errors import InputTypeError, InputValueError, MissingDependencyError
from e5onnx.integrations.encoders import (
    EncoderArguments,
    all_arguments,
    document_vectors,
    query_vector,
    shared_encoder,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise MissingDependencyError("the integration for Haystack needs more: pip install 'e5onnx[haystack]'") from error


class _Embedder:
    """A model, loaded when it is first needed, and how a pipeline's file describes it."""

    def __init__(self, model: str | os.PathLike[str], **arguments: Unpack[EncoderArguments]) -> None:
        """Note which model to load, with arguments as for :class:`e5onnx.Encoder`."""
        self._arguments = {"model": os.fspath(model), **all_arguments(**arguments)}
        self._encoder: Encoder | None = None

    def warm_up(self) -> Encoder:
        """Load the model, or share the one that this process has loaded."""
        if self._encoder is None:
            self._encoder = shared_encoder(**self._arguments)
        return self._encoder

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a pipeline's file has it."""
        return default_to_dict(self, **self._arguments)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make the component that :meth:`to_dict` described."""
        return default_from_dict(cls, data)


@component
class E5OnnxTextEmbedder(_Embedder):
    """Embeds a query with the model's prompt for queries.

    Example:
        >>> embedder = E5OnnxTextEmbedder("models/sample")
        >>> len(embedder.run("how much protein should a female eat")["embedding"])
        384
    """

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query."""
        return {"embedding": query_vector(self.warm_up(), text)}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Embed a query in a thread."""
        return await asyncio.to_thread(self.run, text)


@component
class E5OnnxDocumentEmbedder(_Embedder):
    """Embeds documents with the model's prompt for documents.

    Example:
        >>> embedder = E5OnnxDocumentEmbedder("models/sample", meta_fields_to_embed=["title"])
        >>> found = embedder.run([Document(content="46 grams a day.", meta={"title": "Protein"})])
        >>> len(found["documents"][0].embedding)
        384
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        **arguments: Unpack[EncoderArguments],
    ) -> None:
        """Note which model to load, and which text of a document to embed.

        Args:
            model: as for :class:`e5onnx.Encoder`.
            meta_fields_to_embed: fields of the metadata to put before each text, such as the title.
            embedding_separator: what to put between these and the text.
            arguments: as for :class:`e5onnx.Encoder`.
        """
        _Embedder.__init__(self, model, **arguments)  # Haystack makes this class anew, so that super() fails
        self._meta_fields = list(meta_fields_to_embed or [])
        self._separator = embedding_separator

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return copies of the documents, with embeddings.

        Raises:
            InputTypeError: an input is not a Document.
            InputValueError: a document has no text.
        """
        vectors = document_vectors(self.warm_up(), [self._text(document) for document in documents])
        return {"documents": [replace(each, embedding=vector) for each, vector in zip(documents, vectors, strict=True)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents in a thread; see :meth:`run`."""
        return await asyncio.to_thread(self.run, documents)

    def _text(self, document: Document) -> str:
        if not isinstance(document, Document):
            raise InputTypeError(f"expected a list of Documents, got {type(document).__name__} in it")
        if document.content is None:
            raise InputValueError(f"the document {document.id} has no text: its content is None")
        found = [document.meta.get(field) for field in self._meta_fields]
        return self._separator.join([*(str(value) for value in found if value is not None), document.content])

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a pipeline's file has it."""
        return default_to_dict(
            self,
            **self._arguments,
            meta_fields_to_embed=self._meta_fields,
            embedding_separator=self._separator,
        )
