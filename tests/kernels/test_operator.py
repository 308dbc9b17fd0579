"""The operator in onnxruntime, in graphs of small encoders as the export writes them.

Hidden states are compared with the same arithmetic in numpy, and with onnxruntime's own kernels in fp32. The library
adds in another order than numpy, and its powers and GELUs are polynomials, so now and then a number is rounded to the
other side: the tolerances are those of a few such steps.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from e5onnx_export.build import FUSED, build_encoder, embedding_weights, layer_weights
from e5onnx_export.network import Network
from kernels.access import BF16, TABLES, Kernels
from kernels.building import SANITIZE
from kernels.encoders import (
    PADDING_ID,
    WORDS,
    Tensors,
    last_hidden_state,
    random_network,
    random_texts,
    run,
    session,
    tensors,
)

Array = NDArray[Any]
# hidden size, heads, inner size, layers, family, activation
ENCODERS: dict[str, dict[str, Any]] = {
    "64-bert": {"hidden": 64, "heads": 2, "inner": 64},
    "128-bert-tanh": {"hidden": 128, "heads": 2, "activation": "gelu_new"},
    "192-roberta": {"hidden": 192, "heads": 6, "inner": 320, "family": "roberta"},
    "384-mpnet": {"hidden": 384, "heads": 12, "inner": 448, "family": "mpnet"},
    "768-bert-tanh": {"hidden": 768, "heads": 12, "inner": 832, "activation": "gelu_pytorch_tanh"},
}
# of one layer, largest and root of mean square; hidden states are about 0.6
SAME = {"int8": (0.06, 0.007), "bf16": (0.02, 0.002)}
FP32 = {"int8": (0.3, 0.04), "bf16": (0.05, 0.006)}
LONGEST = 200 if SANITIZE else 512
LENGTHS = [1, 2, 12, 31, 33, 64, 100, 7]


class Library:
    """The built library, and what it says of this processor."""

    def __init__(self, path: Path) -> None:
        self.path, self.functions = path, ctypes.CDLL(str(path))
        self.functions.e5onnx_kernels_instructions.restype = ctypes.c_char_p

    @property
    def instructions(self) -> str:
        return str(self.functions.e5onnx_kernels_instructions().decode())

    def has(self, precision: str) -> bool:
        return bool(self.functions.e5onnx_kernels_has(precision.encode()))

    def created(self) -> int:
        return int(self.functions.e5onnx_kernels_created())

    def session(self, model: onnx.ModelProto, threads: int | str | None = 1, **options: Any) -> Any:
        before = self.created()
        made = session(model, self.path, threads, **options)
        assert self.created() == before + 1
        return made


@pytest.fixture(scope="module")
def built(library: Path) -> Library:
    return Library(library)


@pytest.fixture
def table(built: Library, kernels: Kernels) -> Iterator[Kernels]:
    """The operator with the kernels of each instruction set in turn."""
    built.functions.access_choose(kernels.number)
    yield kernels
    built.functions.access_choose(-1)


@pytest.fixture
def precision(table: Kernels) -> str:
    return "int8" if table.is_int8 else "bf16"


def same_arithmetic(table: Kernels, source: Tensors, ids: Array, mask: Array) -> Array:
    """Return the hidden states of a batch, in numpy."""
    rounds = table.element == BF16
    return np.stack([last_hidden_state(source, *text, rounds_elements=rounds) for text in zip(ids, mask, strict=True)])


@cache
def encoder(name: str, precision: str, layers: int = 1) -> Tensors:
    return tensors(random_network(**ENCODERS[name], layers=layers), precision)


@pytest.fixture
def deep(precision: str) -> Tensors:
    """Three layers, whose heads and panels three threads can share."""
    return encoder("192-roberta", precision, 3)


def stock(network: Network) -> onnxruntime.InferenceSession:
    """Return the graph in fp32 as onnxruntime runs it without the library."""
    layers = [layer_weights(network, layer, FUSED) for layer in network.layers]
    return session(build_encoder(network, FUSED, embedding_weights(network), layers), None)


def check(found: Array, expected: Array, tolerances: tuple[float, float]) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    error = found - expected
    assert np.abs(error).max() <= tolerances[0]
    assert np.sqrt((error**2).mean()) <= tolerances[1]


# What it computes


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states(built: Library, table: Kernels, precision: str, name: str) -> None:
    source = encoder(name, precision)
    ids, mask = random_texts(LENGTHS)
    ids[2, 3:5] = PADDING_ID  # as a token: RoBERTa does not count it
    found = run(built.session(source.graph()), ids, mask)
    check(found, same_arithmetic(table, source, ids, mask), SAME[precision])
    is_token = mask == 1
    check(found[is_token], run(stock(source.network), ids, mask)[is_token], FP32[precision])
    assert not found[~is_token].any()


@pytest.mark.parametrize("name", ["128-bert-tanh", "384-mpnet"])
def test_one_token_and_the_most(built: Library, table: Kernels, precision: str, name: str) -> None:
    source = encoder(name, precision)
    made = built.session(source.graph())
    for length in (1, 511, 512):
        ids, mask = random_texts([length])
        check(run(made, ids, mask), same_arithmetic(table, source, ids, mask), SAME[precision])


def test_layers_follow_each_other(built: Library, table: Kernels, precision: str, deep: Tensors) -> None:
    ids, mask = random_texts(LENGTHS)
    largest, mean = SAME[precision]
    check(run(built.session(deep.graph()), ids, mask), same_arithmetic(table, deep, ids, mask), (3 * largest, 3 * mean))


def test_smallest_positions(built: Library, table: Kernels, precision: str) -> None:
    """About the smallest normal number of float16, in which int8 has them; normalisation makes them large."""
    source = copy.deepcopy(encoder("64-bert", precision))
    words, positions = (source.embeddings[f"{name}_table"] for name in ("word", "position"))
    words[5] = 0
    steps = np.random.default_rng(0).integers(-2047, 2048, positions[0].shape)
    positions[0] = (steps * 2.0**-24).astype(positions.dtype)
    ids = np.array([[5]])
    found = run(built.session(source.graph()), ids, np.ones_like(ids))
    check(found, same_arithmetic(table, source, ids, np.ones_like(ids)), SAME[precision])


@pytest.mark.parametrize("name", ["128-bert-tanh", "192-roberta", "384-mpnet"])
def test_masks_with_holes(built: Library, table: Kernels, precision: str, name: str) -> None:
    source = encoder(name, precision)
    made = built.session(source.graph())
    ids, mask = random_texts([40] * 6, seed=5)
    mask[0, 3:9] = 0
    mask[1, ::2] = 0  # also the first token, which cls pooling reads all the same
    mask[2, 0] = 0
    mask[3, :39] = 0
    mask[4] = 0
    found, expected = run(made, ids, mask), same_arithmetic(table, source, ids, mask)
    check(found, expected, SAME[precision])
    is_read = (mask == 1) | (np.arange(40) == 0)
    is_read[4] = False
    assert not found[~is_read].any()
    assert found[is_read].any(axis=1).all()
    check(found[is_read], run(stock(source.network), ids, mask)[is_read], FP32[precision])
    alone = np.concatenate([run(made, *(each[None] for each in text)) for text in zip(ids, mask, strict=True)])
    assert alone.tobytes() == found.tobytes()


def test_padding_is_not_read(built: Library, precision: str, deep: Tensors) -> None:
    """What stands in the padding makes no difference, not even an id that is out of range."""
    ids, mask = random_texts([20, 9])
    made = built.session(deep.graph())
    other = np.where(mask == 1, ids, 10**12)
    assert run(made, other, mask).tobytes() == run(made, ids, mask).tobytes()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
@pytest.mark.parametrize("threads", [1, 2])
def test_empty_batches(built: Library, precision: str, deep: Tensors, shape: tuple[int, int], threads: int) -> None:
    empty = np.zeros(shape, np.int64)
    assert run(built.session(deep.graph(), threads), empty, empty).shape == (*shape, 192)


# Independence, bit for bit


def test_texts_are_the_same_in_any_batch_and_on_any_threads(built: Library, precision: str, deep: Tensors) -> None:
    """In all three ways to divide a batch: whole texts, rows, and columns where there are at most 64 rows."""
    model = deep.graph()
    rng = np.random.default_rng(0)
    lengths = [int(length) for length in rng.permutation([1, 2, 3, 5, 6, 7, 11, 12, 30, 32, 33, 48, 97, 130, LONGEST])]
    ids, mask = random_texts(lengths)
    one = built.session(model)
    alone = [run(one, ids[[text], :length], mask[[text], :length])[0] for text, length in enumerate(lengths)]

    def check_batch(made: Any, texts: list[int]) -> None:
        width = max(lengths[text] for text in texts)
        found = run(made, ids[texts, :width], mask[texts, :width])
        for row, text in enumerate(texts):
            assert found[row, : lengths[text]].tobytes() == alone[text].tobytes(), (texts, lengths[text])

    everything = list(range(len(lengths)))
    for threads in (3,) if SANITIZE else (1, 2, 3, 4, 7):
        made = built.session(model, threads, intra=2)
        for text in everything:
            check_batch(made, [text])
        for count in (2, 3, 5, 15):
            check_batch(made, [int(text) for text in rng.permutation(len(lengths))[:count]])
        short = [text for text in everything if lengths[text] <= 12]
        check_batch(made, short)  # 47 rows
        check_batch(made, [text for text in everything if lengths[text] <= 5])  # 11 rows of several texts
        check_batch(made, everything * (1 if SANITIZE else 5))


def test_whole_texts_in_many_chunks(built: Library, precision: str) -> None:
    """More rows than a chunk has, of texts as long as a chunk, and texts longer and shorter."""
    source = encoder("64-bert", precision, 2)
    model = source.graph()
    lengths = [512] * 3 + [1] * 40 + [200] * 5 + [511, 512, 1, 300] * 2
    ids, mask = random_texts(lengths)
    one = built.session(model)
    expected = [run(one, ids[[text], :length], mask[[text], :length])[0] for text, length in enumerate(lengths)]
    for threads in (1, 3):
        found = run(built.session(model, threads, intra=2), ids, mask)
        for text, length in enumerate(lengths):
            assert found[text, :length].tobytes() == expected[text].tobytes()
            assert not found[text, length:].any()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_may_call_one_session(built: Library, precision: str, deep: Tensors, threads: int) -> None:
    made = built.session(deep.graph(), threads, intra=2)
    lengths = [[5], [40], [12, 3], [60] * 12, [LONGEST], [31]]
    batches = [random_texts(each, seed) for seed, each in enumerate(lengths)]
    expected = [run(made, *batch) for batch in batches]
    repeats = 2 if SANITIZE else 8
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: run(made, *batch), batches * repeats))
    for each, wanted in zip(found, expected * repeats, strict=True):
        assert each.tobytes() == wanted.tobytes()


def test_sessions_of_different_graphs_and_threads_live_together(built: Library, precision: str, deep: Tensors) -> None:
    other = encoder("64-bert", precision, 2)
    ids, mask = random_texts([20, 4])
    expected = [run(built.session(each.graph()), ids, mask) for each in (deep, other)]
    sessions = [built.session(each.graph(), threads, intra=2) for threads in (2, 3) for each in (deep, other)]
    for made, wanted in zip(sessions, expected * 2, strict=True):
        assert run(made, ids, mask).tobytes() == wanted.tobytes()


def test_optimisation_of_the_graph_changes_nothing(built: Library, precision: str, deep: Tensors) -> None:
    ids, mask = random_texts([20, 4])
    found = [run(built.session(deep.graph(), optimize=optimize), ids, mask) for optimize in (True, False)]
    assert found[0].tobytes() == found[1].tobytes()


def test_default_number_of_threads(built: Library, precision: str, deep: Tensors) -> None:
    ids, mask = random_texts([20, 4])
    found = run(built.session(deep.graph(), None, intra=2), ids, mask)
    assert found.tobytes() == run(built.session(deep.graph()), ids, mask).tobytes()


# Inputs that are refused


def test_token_ids_out_of_range(built: Library, precision: str, deep: Tensors) -> None:
    made = built.session(deep.graph())
    ids, mask = random_texts([6, 6])
    for value in (WORDS, -1, 2**31, 2**32 + 5, -(2**63)):
        wrong = ids.copy()
        wrong[1, 4] = value
        with pytest.raises(Exception, match=f"token id {value} in row 1 is outside the vocabulary of {WORDS}"):
            run(made, wrong, mask)
    ids[1, 4] = WORDS - 1
    run(made, ids, mask)


@pytest.mark.parametrize("value", [2, -1, 2**32, 2**32 + 1])
def test_masks_of_other_numbers(built: Library, precision: str, deep: Tensors, value: int) -> None:
    made = built.session(deep.graph())
    ids, mask = random_texts([6, 6])
    mask[1, 2] = value
    with pytest.raises(Exception, match=f"attention_mask holds {value} in row 1; it must hold 0 and 1"):
        run(made, ids, mask)


@pytest.mark.parametrize("name", ["64-bert", "192-roberta", "384-mpnet"])
def test_texts_that_are_too_long(built: Library, precision: str, name: str) -> None:
    made = built.session(encoder(name, precision).graph())
    ids, mask = random_texts([513])
    with pytest.raises(Exception, match="texts of 513 tokens are longer than the encoder's maximum"):
        run(made, ids, mask)
    if name == "384-mpnet":  # there are positions enough if one token is not counted, but not distances
        ids[0, 3] = PADDING_ID
        with pytest.raises(Exception, match="texts of 513 tokens are longer than the encoder's maximum"):
            run(made, ids, mask)


def test_inputs_of_different_shapes(built: Library, precision: str, deep: Tensors) -> None:
    made = built.session(deep.graph())
    ids, mask = random_texts([6, 6])
    with pytest.raises(Exception, match=r"must be int64 .* of the same shape"):
        run(made, ids, mask[:, :5])


# Graphs that are refused


def refused(built: Library, model: onnx.ModelProto, reason: str) -> None:
    before = built.created()
    with pytest.raises(Exception, match=f"e5onnx-kernels: .*{reason}"):
        session(model, built.path)
    assert built.created() == before


def drop(model: onnx.ModelProto, name: str) -> None:
    """Remove an input of the node, in the function too."""
    node = model.graph.node[0]
    node.input.remove(name)
    encoder = next(function for function in model.functions if function.name == "BertEncoder")
    if name in encoder.input:
        encoder.input.remove(name)
    kept = [each for each in model.graph.initializer if each.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def add(model: onnx.ModelProto, name: str, tensor: Array) -> None:
    model.graph.node[0].input.append(name)
    next(function for function in model.functions if function.name == "BertEncoder").input.append(name)
    model.graph.initializer.append(numpy_helper.from_array(tensor, name))


def replace(model: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> None:
    initializer = next(each for each in model.graph.initializer if each.name == name)
    initializer.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(initializer).copy()), name))


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"hidden": 48, "heads": 1}, "the hidden size is 48; only multiples of 64 are covered"),
        ({"hidden": 64, "inner": 96}, "the feed-forward size is 96; only multiples of 64 are covered"),
        ({"hidden": 192, "heads": 16}, "16 heads for a hidden size of 192; only heads of 32 and 64 are covered"),
        ({"hidden": 128, "heads": 1}, "1 heads for a hidden size of 128; only heads of 32 and 64 are covered"),
        ({"hidden": 64, "heads": 2, "activation": "relu"}, "the activation function relu is not covered, only GELU"),
        ({"hidden": 64, "heads": 2, "activation": "quick_gelu"}, "the activation function quick_gelu is not covered"),
        ({"hidden": 64, "heads": 2, "layers": 0}, "the encoder has no layers"),
    ],
)
def test_sizes_that_are_not_covered(built: Library, sizes: dict[str, Any], reason: str) -> None:
    refused(built, tensors(random_network(**{"layers": 1, **sizes}), "bf16").graph(), reason)


@pytest.fixture
def model(precision: str) -> onnx.ModelProto:
    """A graph to damage."""
    return copy.deepcopy(encoder("64-bert", precision, 2).graph())


def test_a_missing_input(built: Library, model: onnx.ModelProto) -> None:
    for name in ("layer_1_output_bias", "embedding_norm_shift", "position_table", "layer_0_value_weight"):
        damaged = copy.deepcopy(model)
        drop(damaged, name)
        refused(built, damaged, f"the encoder has no input {name}")


def test_an_input_that_is_not_known(built: Library, model: onnx.ModelProto) -> None:
    add(model, "adapter_weight", np.zeros((4, 4), np.float32))
    refused(built, model, "an input that this library does not know: adapter_weight")


def test_a_layer_too_many(built: Library, model: onnx.ModelProto) -> None:
    """Layers 0, 1 and 3: nothing may be left out silently."""
    add(model, "layer_3_query_weight", np.zeros((64, 66), np.float32))
    refused(built, model, "an input that this library does not know: layer_3_query_weight")


def floats(model: onnx.ModelProto) -> list[str]:
    return [each.name for each in model.graph.initializer if numpy_helper.to_array(each).dtype.kind == "f"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(built: Library, model: onnx.ModelProto, value: float, precision: str) -> None:
    # the words of fp32 are not looked through: see test_not_finite_words
    ignored = ("word_table",)
    for name in floats(model):
        # what the library has scales of its own for
        if name in ignored or (precision == "int8" and name.endswith(("hidden_scale", "ed_scale"))):
            continue
        damaged = copy.deepcopy(model)

        def damage(tensor: Array) -> Array:
            tensor.reshape(-1)[tensor.size // 2] = value
            return tensor

        replace(damaged, name, damage)
        refused(built, damaged, f"{name} holds NaN or infinity")


def test_not_finite_words_reach_the_output(built: Library, model: onnx.ModelProto, precision: str) -> None:
    """Those of fp32 are not read at load, since most never leave the file; a text with such a word is NaN."""
    if precision == "int8":
        pytest.skip("a word in int8 cannot be NaN")
    for value in (np.nan, np.inf):
        damaged = copy.deepcopy(model)

        def damage(tensor: Array, value: float = value) -> Array:
            tensor[7, 11] = value
            return tensor

        replace(damaged, "word_table", damage)
        made = built.session(damaged)
        ids, mask = random_texts([12, 12])
        ids[ids == 7] = 8
        clean = run(made, ids, mask)
        assert np.isfinite(clean).all()
        ids[1, 4] = 7
        found = run(made, ids, mask)
        assert np.isnan(found[1]).all()
        assert found[0].tobytes() == clean[0].tobytes()


def test_shapes_and_types_that_do_not_fit(built: Library, model: onnx.ModelProto) -> None:
    def cut(tensor: Array) -> Array:
        return np.ascontiguousarray(tensor[..., :-1])

    wider: Callable[[Array], Array] = lambda tensor: np.concatenate([tensor, tensor[-1:]])  # noqa: E731
    for name in ("layer_1_key_weight", "layer_0_attention_norm_scale", "embedding_norm_shift", "position_table"):
        for change in (cut, lambda tensor: tensor.astype(np.float64)):
            damaged = copy.deepcopy(model)
            replace(damaged, name, change)
            refused(built, damaged, f"the encoder's input {name} has type")
    damaged = copy.deepcopy(model)
    replace(damaged, "layer_1_output_weight", wider)
    refused(built, damaged, r"input layer_1_output_weight has type .* and shape \[65, 64\], expected .* \[64, 64\]")


def test_weights_that_are_not_constant(built: Library, model: onnx.ModelProto) -> None:
    kept = [each for each in model.graph.initializer if each.name != "layer_0_output_bias"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.input.append(onnx.helper.make_tensor_value_info("layer_0_output_bias", onnx.TensorProto.FLOAT, [64]))
    refused(built, model, "the encoder's input layer_0_output_bias is not a constant")


def test_attributes_that_are_not_plausible(built: Library, model: onnx.ModelProto) -> None:
    for name, value in (("epsilon", -1.0), ("epsilon", float("nan")), ("scale", 0.0), ("scale", float("inf"))):
        damaged = copy.deepcopy(model)
        (attribute,) = (each for each in damaged.graph.node[0].attribute if each.name == name)
        attribute.f = value
        refused(built, damaged, "attributes epsilon and scale are not plausible")


@pytest.mark.parametrize("threads", ["", "0", "-1", "two", "1.5", " 2", "2 ", "1025", "99999999999", "0x2"])
def test_numbers_of_threads_that_are_none(built: Library, threads: str) -> None:
    with pytest.raises(Exception, match=rf"e5onnx.threads must be a number from 1 to 1024, got {threads}"):
        session(encoder("64-bert", "bf16").graph(), built.path, threads)


def test_a_graph_without_the_node_is_not_taken(built: Library) -> None:
    """Nothing says so but the count, which the runtime looks at."""
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "identity", values[:1], values[1:])
    before = built.created()
    session(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), built.path)
    assert built.created() == before


def test_what_the_library_says_of_the_processor(built: Library) -> None:
    assert built.instructions in ("", *(name.split()[0] for name in TABLES))
    assert built.has("int8") == (built.instructions != "")
    assert built.has("bf16") == (built.instructions == "avx512-bf16")
    for name in ("", "fp32", "int", "INT8", "int88"):
        assert not built.has(name)
