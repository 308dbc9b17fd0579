"""The embedding server, `e5onnx serve`: extra `serve` (Starlette, uvicorn, prometheus-client, orjson).

scheduler.py    requests that wait run together, and take turns
metrics.py      what Prometheus is told
app.py          the HTTP interface
tei.py          text-embeddings-inference's requests, as data
run.py          sockets, signals, the end
"""
