"""Shorter vectors: the first components, normalised again (Matryoshka embeddings). Does not know models.

Only a model that was trained for it keeps its quality when vectors are cut; whoever calls this decides whether they may
be. Shortened vectors are comparable with others of the same length only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .similarity import unit_length


def shorten(vectors: NDArray[np.float32], dimensions: int, *, normalize: bool) -> NDArray[np.float32]:
    """Return the first components of vectors, a new array `[..., dimensions]`.

    Args:
        vectors: float32 `[..., dimension]`.
        dimensions: how many components to keep, from 1 to `dimension`.
        normalize: whether to give them unit length again. A vector of zeros stays one.

    Example:
        >>> shorten(np.array([[0.48, 0.64, 0.6]], np.float32), 2, normalize=True).round(6).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    cut = np.array(vectors[..., :dimensions], order="C")
    return unit_length(cut) if normalize else cut
