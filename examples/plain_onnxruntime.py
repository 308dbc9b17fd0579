"""Use a model folder without e5onnx: onnxruntime, tokenizers and numpy alone.

pip install onnxruntime tokenizers numpy
python plain_onnxruntime.py MODEL

Pooling and normalisation are in the graph. What is left to do: the prompt, token ids, the cut, padding.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

folder = Path(sys.argv[1])
manifest = json.loads((folder / "e5onnx.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(manifest["max_tokens"])  # longer texts are cut, silently
tokenizer.enable_padding()  # to the longest text; the attention mask hides the padding
session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])


def embed(texts: list[str], prompt_name: str) -> NDArray[np.float32]:
    """Return vectors of unit length, `[texts, dimension]`; "pooled_embedding" holds them before normalisation."""
    prompt = manifest["prompts"][prompt_name] if manifest["prompts"] else ""
    encodings = tokenizer.encode_batch([prompt + text for text in texts])
    inputs = {
        "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
    }
    vectors: NDArray[np.float32] = session.run(["sentence_embedding"], inputs)[0]
    return vectors


if __name__ == "__main__":
    passages = ["A summit is the topmost point of a mountain.", "46 grams of protein a day are enough for a woman."]
    query = embed(["how much protein should a female eat"], "query")[0]
    for passage, score in zip(passages, embed(passages, "document") @ query, strict=True):
        print(f"{score:.3f}  {passage}")
