"""Embeddings for other libraries, one file and one extra each.

encoders.py     what they share: one encoder per model and arguments
langchain.py    `E5OnnxEmbeddings`
llama_index.py  `E5OnnxEmbedding`
chroma.py       `E5OnnxEmbeddingFunction`
lancedb.py      "e5onnx" of the registry
mteb.py         `E5OnnxModel`

Haystack's embedders are in `haystack_integrations.components.embedders.e5onnx`, where Haystack loads them from.
"""
