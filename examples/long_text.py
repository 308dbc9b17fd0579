"""Embed a text that is longer than the model reads: overlapping windows, and the mean of their vectors.

pip install e5onnx
python long_text.py MODEL

One vector for a long text blurs its topics. To find places in it, keep the vectors of the windows as well.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from e5onnx import Encoder


def windows(text: str, encoder: Encoder, prompt: str) -> list[str]:
    """Divide a text at white space into windows that fit the model; each starts halfway through the one before.

    A single word that does not fit is a window of its own, and the encoder warns that it is cut.
    """
    words = text.split()
    room = encoder.max_tokens - encoder.count_tokens("", prompt=prompt)
    special = encoder.count_tokens("", prompt="")
    tokens = [count - special for count in encoder.count_tokens(words, prompt="")]  # BERT tokenises words one by one
    ends = np.concatenate([[0], np.cumsum(tokens, dtype=int)])  # tokens before each word, and in all
    found, start = [], 0
    while True:
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + room, side="right")) - 1)
        found.append(" ".join(words[start:stop]))
        if stop >= len(words):
            return found
        start = max(start + 1, int(np.searchsorted(ends, ends[stop] - room // 2)))


def encode_long(text: str, encoder: Encoder) -> NDArray[np.float32]:
    """Return one vector of unit length for a document of any length."""
    prompt = encoder.tokenizer.prompt_for("document")
    mean = encoder.encode(windows(text, encoder, prompt), prompt=prompt, normalize_embeddings=True).mean(axis=0)
    vector: NDArray[np.float32] = mean / np.linalg.norm(mean)
    return vector


PARAGRAPHS = [
    "Bees live in colonies of many thousand workers and one queen. They collect nectar and turn it into honey. ",
    "A keeper opens the hive on warm days, looks for brood and food, and leaves enough honey for the winter. ",
    "In autumn the colony shrinks. The bees form a cluster around the queen and keep each other warm. ",
]
text = "".join(paragraph * 12 for paragraph in PARAGRAPHS)

if __name__ == "__main__":
    encoder = Encoder(sys.argv[1])
    prompt = encoder.tokenizer.prompt_for("document")
    print(f"{encoder.count_tokens(text, prompt=prompt)} tokens, the model reads {encoder.max_tokens}")
    print(f"{len(windows(text, encoder, prompt))} windows")
    vector = encode_long(text, encoder)
    for question in ("how do bees survive the cold", "how do airports work"):
        print(f"{float(vector @ encoder.encode_query(question)):.3f}  {question}")
