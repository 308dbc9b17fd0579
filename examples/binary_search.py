"""Search with one bit per component, a 32nd of the memory, and rescore the best with more precision.

pip install e5onnx 'numpy>=2'
python binary_search.py MODEL

The first step compares bits, all of them in memory. The second ranks the candidates by their float vectors, few enough
to read from a memory-mapped file (np.load with mmap_mode="r") or a database.
"""

import sys
from itertools import product

import numpy as np

from e5onnx import Encoder

ANIMALS = (
    "ant,bat,camel,dolphin,eagle,fox,goose,hedgehog,jellyfish,koala,lizard,mole,newt,octopus,penguin,rabbit,shark,wolf"
)
QUESTIONS = [
    *("what does a {} eat", "where does a {} sleep", "how long does a {} live", "how fast does a {} move"),
    *("how does a {} find a mate", "is a {} dangerous to people", "how much does a {} weigh", "can a {} see colours"),
    *("how many young does a {} have", "what are the enemies of a {}", "does a {} migrate", "can a {} swim"),
    *("how intelligent is a {}", "do people keep a {} as a pet", "how does a {} survive the winter"),
]
CANDIDATES, RESULTS = 60, 10

encoder = Encoder(sys.argv[1])
texts = [question.format(animal) for animal, question in product(ANIMALS.split(","), QUESTIONS)]
vectors = encoder.encode_query(texts)  # questions are compared with questions, so all get the prompt of queries
bits = np.packbits(vectors > 0, axis=1)  # (texts, 48) bytes instead of (texts, 384) floats

query = encoder.encode_query("do wolves make good house animals")
different = np.bitwise_count(bits ^ np.packbits(query > 0)).sum(axis=1)  # Hamming distance to every text
candidates = np.argpartition(different, CANDIDATES)[:CANDIDATES]

scores = vectors[candidates] @ query
order = np.argsort(-scores)[:RESULTS]
found = candidates[order]
for index, score in zip(found, scores[order], strict=True):
    print(f"{score:.3f}  {texts[index]}")
exact = np.argsort(-(vectors @ query))[:RESULTS]
recall = len(set(found) & set(exact)) / RESULTS
print(f"{bits.nbytes:,} bytes instead of {vectors.nbytes:,}; {recall:.0%} of what an exact search finds")
