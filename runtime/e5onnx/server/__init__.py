"""The embedding server, `e5onnx serve`: extra `serve` (Starlette, uvicorn, prometheus-client, orjson).

cli.py            the options of the command
options.py        their defaults
serve.py          socket, signals, shutdown
protocol.py       uvicorn's HTTP on h11, with timeouts
middleware.py     connections, request ids, log lines, errors, memory, hosts, keys
app.py            the routes, and what connects them to the model
tei.py            the API of text-embeddings-inference
body.py           reads request bodies within limits
tokenization.py   text -> tokens beside the event loop
queue.py          whose turn it is, and which texts run together
scheduler.py      the threads that run the model
responses.py      JSON and errors
pages.py          the files of page/: the page to try the model, the OpenAPI document
request_state.py  what the server notes about a request
metrics.py        the metrics for Prometheus
logs.py           the log lines
"""
