"""Keep passages and vectors in DuckDB, and search with SQL.

pip install e5onnx duckdb pyarrow
python duckdb_search.py MODEL
"""

import sys

import duckdb
import pyarrow as pa

from e5onnx import Encoder

BOOKS = [
    ("Moby-Dick", 1851, "A captain hunts the white whale that took his leg."),
    ("Frankenstein", 1818, "A scientist makes a creature, which then haunts him."),
    ("Dracula", 1897, "A vampire count moves from Transylvania to England."),
    ("Emma", 1815, "A young woman arranges her friends' marriages and misjudges her own heart."),
    ("The Time Machine", 1895, "An inventor travels to the far future of mankind."),
    ("Treasure Island", 1883, "A boy sails with pirates to dig up buried gold."),
    ("Walden", 1854, "A man lives alone by a pond in the woods."),
    ("Great Expectations", 1861, "An orphan comes into money from an unknown benefactor."),
]

encoder = Encoder(sys.argv[1])
titles, years, plots = zip(*BOOKS, strict=True)
vectors = encoder.encode_document(plots)
column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), encoder.dimension)
rows = pa.table({"title": titles, "year": years, "plot": plots, "embedding": column})

database = duckdb.connect()  # in memory; duckdb.connect("books.duckdb") for a file
database.register("rows", rows)
database.execute("CREATE TABLE books AS SELECT * FROM rows")

query = encoder.encode_query("an adventure at sea")
found = database.execute(
    f"SELECT title, array_inner_product(embedding, $query::FLOAT[{encoder.dimension}]) AS score "
    "FROM books WHERE year > 1850 ORDER BY score DESC LIMIT 3",
    {"query": query.tolist()},
).fetchall()
for title, score in found:
    print(f"{score:.3f}  {title}")
