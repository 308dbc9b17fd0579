"""Embed a column of a pandas data frame, and filter and rank its rows.

pip install e5onnx pandas
python pandas_column.py MODEL
"""

import sys

import numpy as np
import pandas as pd

from e5onnx import Encoder

products = pd.DataFrame(
    [
        ("waterproof hiking boots", 129.0),
        ("a tent for two people", 210.0),
        ("cast-iron frying pan", 45.0),
        (None, 12.0),  # a missing text
        ("trainers for running on roads", 89.0),
        ("espresso machine", 320.0),
        ("woollen socks for cold days", 15.0),
        ("leather shoes for the office", 140.0),
    ],
    columns=["description", "price"],
)

encoder = Encoder(sys.argv[1])
products = products.dropna(subset=["description"])  # an encoder refuses what is not a text, and says in which row
products["embedding"] = list(encoder.encode_document(products["description"]))  # a vector per row, float32

affordable = products[products["price"] < 135].copy()
query = encoder.encode_query("something for my feet")
affordable["score"] = np.stack(affordable["embedding"].to_list()) @ query
found = affordable.sort_values("score", ascending=False).head(3)
print(found[["description", "price", "score"]].to_string(index=False))
