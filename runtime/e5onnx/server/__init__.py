"""The embedding server, `e5onnx serve`: extra `serve` (Starlette, uvicorn, prometheus-client, orjson).

turns.py        what waits, whose turn it is, and which texts run together
scheduler.py    the threads that run the model on it
tokenizing.py   texts -> tokens beside the event loop
app.py          the HTTP interface
openapi.py      its document
tei.py          text-embeddings-inference's requests, as data
body.py         bodies of requests, within limits
middleware.py   what surrounds every request: its connection, id, log line, host, key
replies.py      JSON, errors, the files of the page
metrics.py      what Prometheus is told
protocol.py     uvicorn's HTTP on h11, with limits on what a client can hold
logs.py         the log's lines
run.py          sockets, signals, the end
cli.py          the command's options
"""
