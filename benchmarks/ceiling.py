"""What onnxruntime's fp32 matrix multiplication allows on this machine, as tokens/s of E5-small.

E5-small multiplies, per token and layer, 4 times by 384x384 (query, key, value, output) and by 384x1536 and 1536x384
(feed-forward): 42.5 MFLOP over 12 layers. No fp32 program with onnxruntime's kernels can embed more tokens/s than these
products alone take; attention, normalisation, GELU and tokenising come on top.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from .peers import THREADS

LAYERS = 12
SHAPES = ((384, 384, 4), (384, 1536, 1), (1536, 384, 1))
"""Inner and outer dimension of each product of a layer, and how often it occurs."""
FLOP_PER_TOKEN = LAYERS * sum(2 * inner * outer * times for inner, outer, times in SHAPES)


def measure(rounds: int = 5, rows: tuple[int, ...] = (256, 512, 1024)) -> dict[str, Any]:
    """Return the best tokens/s over the numbers of rows, with the median seconds of every product.

    Of each product the best median of the rounds counts: a ceiling should not sink because something else ran.
    """
    products: list[dict[str, Any]] = []
    for tokens in rows:
        for inner, outer, times in SHAPES:
            seconds = _seconds(tokens, inner, outer, rounds)
            gigaflops = 2 * tokens * inner * outer / min(seconds) / 1e9
            products.append(
                {"shape": [tokens, inner, outer], "times": times, "medians": seconds, "gigaflop_per_second": gigaflops}
            )
    tokens_per_second = {}
    for tokens in rows:
        layer = sum(min(each["medians"]) * each["times"] for each in products if each["shape"][0] == tokens)
        tokens_per_second[tokens] = tokens / (LAYERS * layer)
    best = max(tokens_per_second.values())
    return {
        "onnxruntime": onnxruntime.__version__,
        "tokens_per_second": best,
        "teraflop_per_second": best * FLOP_PER_TOKEN / 1e12,
        "megaflop_per_token": FLOP_PER_TOKEN / 1e6,
        "tokens_per_second_by_rows": tokens_per_second,
        "products": products,
    }


def _seconds(tokens: int, inner: int, outer: int, rounds: int, repeats: int = 30) -> list[float]:
    """Return the median seconds of one product in each round, with weights packed at load and no copies."""
    random = np.random.default_rng(0)
    weight = numpy_helper.from_array(random.standard_normal((inner, outer), dtype=np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"])],
        "product",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [tokens, inner])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [tokens, outer])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    inputs = random.standard_normal((tokens, inner), dtype=np.float32)
    outputs = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((tokens, outer), np.float32))
    binding.bind_cpu_input("input", inputs)
    binding.bind_ortvalue_output("output", outputs)
    medians = []
    for _ in range(rounds):
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            seconds.append(time.perf_counter() - start)
        medians.append(float(np.median(seconds)))
    return medians
