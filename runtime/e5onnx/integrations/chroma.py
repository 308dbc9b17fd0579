"""Chroma: `E5OnnxEmbeddingFunction`. Needs the extra `chroma`.

Import this module before you open a collection that was made with it: the import tells Chroma what "e5onnx" is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputValueError, MissingDependencyError
from .encoders import EncoderArguments, all_arguments, shared_encoder

if TYPE_CHECKING:
    from typing_extensions import Unpack

try:
    from chromadb.api.types import Documents, EmbeddingFunction, Space
    from chromadb.utils.embedding_functions import register_embedding_function
except ImportError as error:
    raise MissingDependencyError("the integration for Chroma needs more: pip install 'e5onnx[chroma]'") from error

if not hasattr(EmbeddingFunction, "embed_query"):
    raise MissingDependencyError(
        "Chroma before 1.1 would embed queries as documents: pip install --upgrade 'e5onnx[chroma]'"
    )


class E5OnnxEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds what is added with the model's prompt for documents, and query texts with that for queries.

    Chroma keeps the arguments and the model's fingerprint with the collection. `client.get_collection(name)` makes the
    function from these, and fails if the model gives other vectors now. Do not pass `embedding_function` to it: Chroma
    would take another model without a word.

    Example:
        >>> function = E5OnnxEmbeddingFunction("models/sample")
        >>> function.embed_query(["how much protein should a female eat"])[0].shape
        (384,)
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        fingerprint: str | None = None,
        **arguments: Unpack[EncoderArguments],
    ) -> None:
        """Load a model, or share the one that this process has loaded.

        Args:
            model: as for :class:`e5onnx.Encoder`.
            fingerprint: the fingerprint that the model must have.
            arguments: as for :class:`e5onnx.Encoder`.
        """
        self._model = os.fspath(model)
        self._arguments = all_arguments(**arguments)
        self._encoder = shared_encoder(model, fingerprint=fingerprint, **self._arguments)

    def __call__(self, input: Documents) -> list[NDArray[np.float32]]:
        """Embed documents."""
        return list(self._encoder.encode_document([input] if isinstance(input, str) else input))

    def embed_query(self, input: Documents) -> list[NDArray[np.float32]]:
        """Embed queries."""
        return list(self._encoder.encode_query([input] if isinstance(input, str) else input))

    @staticmethod
    def name() -> str:
        """Return the name under which collections refer to this class."""
        return "e5onnx"

    def default_space(self) -> Space:
        """Return how new collections compare vectors: as the model's authors do."""
        return self.supported_spaces()[0]

    def supported_spaces(self) -> list[Space]:
        """Return the spaces that rank as the model's authors do."""
        manifest = self._encoder.manifest
        if manifest.similarity_fn_name == "dot":
            return ["ip"]
        return ["cosine", "ip", "l2"] if manifest.normalize else ["cosine"]

    def get_config(self) -> dict[str, Any]:
        """Return what Chroma keeps with a collection."""
        return {"model": self._model, **self._arguments, "fingerprint": self._encoder.fingerprint}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> E5OnnxEmbeddingFunction:
        """Make the function of a collection, if the model has not changed."""
        return E5OnnxEmbeddingFunction(**config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Let a collection have another path or number of threads, but not another model."""
        if old_config["fingerprint"] != new_config["fingerprint"]:
            raise InputValueError(
                f"the collection's vectors have the fingerprint {old_config['fingerprint']}, and the new function "
                f"{new_config['fingerprint']}: make a new collection"
            )


register_embedding_function(E5OnnxEmbeddingFunction)
