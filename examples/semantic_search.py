"""Search 5,000 passages by meaning, with numpy alone.

pip install e5onnx
python semantic_search.py MODEL
"""

import sys
from itertools import product

import numpy as np

from e5onnx import Encoder

TIMES = "spring,summer,autumn,winter,the morning,the evening,heavy rain,a heat wave,the holidays,the night".split(",")
CITIES = (
    "Athens,Berlin,Cairo,Dublin,Edinburgh,Florence,Geneva,Helsinki,Istanbul,Jakarta,Kyoto,Lisbon,Madrid,Nairobi,Oslo,"
    "Prague,Quito,Rome,Seoul,Tokyo"
).split(",")
ACTIVITIES = [
    *("listen to a symphony orchestra", "watch a football match", "see an exhibition of modern paintings"),
    *("eat fresh fish at the harbour", "taste local wine", "learn to bake bread", "buy spices at the market"),
    *("rent a bicycle", "take a boat trip", "ride an old tram", "board a night train", "climb the cathedral's tower"),
    *("swim in an open-air pool", "run a marathon", "hike in the hills", "go skating", "play chess in the park"),
    *("study old manuscripts", "visit a natural history museum", "join a guided tour of the castle"),
    *(
        "watch birds by the river",
        "look at the stars",
        "photograph wild flowers",
        "feed the ducks",
        "read in a quiet café",
    ),
]

encoder = Encoder(sys.argv[1])
passages = [f"In {city} you can {do} during {time}." for city, do, time in product(CITIES, ACTIVITIES, TIMES)]
vectors = encoder.encode_document(passages)  # (5000, 384), unit length: the inner product is the cosine

query = encoder.encode_query("classical music in the capital of Japan")
scores = vectors @ query
best = np.argpartition(-scores, 5)[:5]  # the five largest, unsorted: faster than to sort all 5,000
best = best[np.argsort(-scores[best])]
for index in best:
    print(f"{scores[index]:.3f}  {passages[index]}")
