"""Keep passages and vectors in PostgreSQL with the extension pgvector, with an index.

pip install e5onnx 'psycopg[binary]'
python pgvector_search.py MODEL postgresql://user@host/database

It makes the table `e5onnx_books` anew.
"""

import sys

import psycopg
from psycopg import sql

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
vectors = encoder.encode_document(plot for _, _, plot in BOOKS)
rows = [(*book, str(vector.tolist())) for book, vector in zip(BOOKS, vectors, strict=True)]

with psycopg.connect(sys.argv[2]) as database, database.cursor() as cursor:
    cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
    cursor.execute("DROP TABLE IF EXISTS e5onnx_books")
    create = "CREATE TABLE e5onnx_books (title text, year int, plot text, embedding vector({}))"
    cursor.execute(sql.SQL(create).format(sql.Literal(encoder.dimension)))
    cursor.executemany("INSERT INTO e5onnx_books VALUES (%s, %s, %s, %s::vector)", rows)
    # inner product, as the vectors have unit length; <#> is its negative
    cursor.execute("CREATE INDEX ON e5onnx_books USING hnsw (embedding vector_ip_ops)")
    # which model the vectors come from: compare it with encoder.fingerprint before you add any, or search
    cursor.execute(sql.SQL("COMMENT ON TABLE e5onnx_books IS {}").format(sql.Literal(encoder.fingerprint)))

    query = str(encoder.encode_query("an adventure at sea").tolist())
    cursor.execute(
        "SELECT title, -(embedding <#> %(query)s::vector) AS score FROM e5onnx_books "
        "WHERE year > 1850 ORDER BY embedding <#> %(query)s::vector LIMIT 3",
        {"query": query},
    )
    found = cursor.fetchall()
for title, score in found:
    print(f"{score:.3f}  {title}")
