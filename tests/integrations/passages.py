"""A query, documents, and arguments for shorter vectors."""

from __future__ import annotations

from e5onnx.integrations.encoders import EncoderArguments

SHORT: EncoderArguments = {"truncate_dim": 64, "force_truncate_dim": True}
QUERY = "how much protein should a female eat"
TEXTS = [
    "Women from 19 to 70 need some 46 grams of protein a day.",
    "The summit of Everest is 8,849 metres above the sea.",
    QUERY,  # a document that reads like the query has another vector all the same
    "",
    *(f"Passage number {number}. " * (1 + number % 7) for number in range(20)),
]
