"""An Encoder shared by threads, pickled, forked, and the memory and modules of a process that uses one."""

from __future__ import annotations

import _thread
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5onnx import Encoder, ModelFolderError
from texts import TEXTS

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(scope="module")
def encoder(sample_model: Path) -> Encoder:
    return Encoder(sample_model, threads=2)


def test_eight_threads_share_an_encoder(encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS)
    orders = [np.random.default_rng(seed).permutation(len(TEXTS)) for seed in range(16)]

    def encode(order: np.ndarray[Any, Any]) -> None:
        np.testing.assert_allclose(encoder.encode([TEXTS[i] for i in order]), expected[order], atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(encode, orders))) == len(orders)


def test_a_pickled_encoder_is_loaded_again_from_its_path(encoder: Encoder, tmp_path: Path, sample_model: Path) -> None:
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert (copy.threads, copy.precision, copy.fingerprint) == (encoder.threads, encoder.precision, encoder.fingerprint)
    np.testing.assert_array_equal(copy.encode(TEXTS), encoder.encode(TEXTS))


def test_a_relative_path_is_pickled_as_an_absolute_one(
    sample_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sample_model.parent)
    pickled = pickle.dumps(Encoder(sample_model.name))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickled).encode("text").shape == (384,)


def test_default_threads_are_decided_where_it_is_unpickled(sample_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(Encoder(sample_model))
    monkeypatch.setenv("E5ONNX_THREADS", "3")
    assert pickle.loads(pickled).threads == 3


def _encode(encoder: Encoder) -> bytes:
    return encoder.encode(TEXTS).tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_get_the_same_vectors(encoder: Encoder, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.map_async(_encode, [encoder] * 4).get(timeout=120)
    assert results == [_encode(encoder)] * 4


# Forks while other threads encode, encodes in the child, and leaves it through the interpreter's full shutdown, where a
# destructor that waits for threads of the parent would hang.
_FORK = """
import os, signal, sys, threading, warnings
import numpy as np
from e5onnx import Encoder, ModelFolderError
from texts import TEXTS

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # Python 3.12 and newer
encoder = Encoder(sys.argv[1], threads=2)
expected = encoder.encode(TEXTS)
stop = threading.Event()
def busy():
    while not stop.is_set():
        encoder.encode(TEXTS)
threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
statuses = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a hanging child ends, and fails the test
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)
        sys.exit(0)
    statuses.append(os.waitpid(child, 0)[1])
stop.set()
for thread in threads:
    thread.join()
print(statuses)
"""


@needs_fork
def test_an_encoder_works_after_a_fork(sample_model: Path) -> None:
    done = _run(_FORK, sample_model)
    assert done.stdout == "[0, 0, 0]\n"
    assert done.stderr == ""


_CHANGED = """
import os, shutil, sys
from pathlib import Path
from e5onnx import Encoder, ModelFolderError

encoder = Encoder(sys.argv[1])
weights = Path(sys.argv[1], sys.argv[2])
before = weights.read_bytes()
for content in (before[:-1] + bytes([before[-1] ^ 1]), before[::-1], before):
    new = weights.with_suffix(".new")
    new.write_bytes(content)
    new.rename(weights)
    child = os.fork()
    if child == 0:
        try:
            encoder.encode("text")
        except ModelFolderError as error:
            sys.exit(3 if "was changed after the export" in str(error) else 4)
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_fork
@pytest.mark.parametrize("file", ["onnx/model.onnx", "onnx/model.onnx_data"])
def test_files_that_changed_are_noticed_after_a_fork(tiny_model: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    assert _run(_CHANGED, folder, file).stdout.split() == ["3", "3", "0"]


_DURING = """
import os, signal, sys, threading
from e5onnx import Tokenizer, tokenizer

begun, go_on = threading.Event(), threading.Event()
class Divider(tokenizer.Divider):
    def __init__(self, *arguments, **options):
        if not begun.is_set():
            begun.set()
            go_on.wait()
        super().__init__(*arguments, **options)
tokenizer.Divider = Divider
text = "word " * 20_000
thread = threading.Thread(target=Tokenizer(sys.argv[1]).count_tokens, args=(text,))
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)  # a hanging child ends, and fails the test
    sys.exit(0 if Tokenizer(sys.argv[1]).count_tokens(text) == 20_002 else 1)
print(os.waitpid(child, 0)[1])
go_on.set()
thread.join()
"""


@needs_fork
def test_a_fork_while_a_thread_tokenises_its_first_long_text(tiny_model: Path) -> None:
    assert _run(_DURING, tiny_model).stdout == "0\n"


def test_another_model_in_the_folder_of_a_pickled_encoder_is_noticed(
    tiny_model: Path, sample_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    pickled = pickle.dumps(Encoder(folder))
    shutil.rmtree(folder)
    shutil.copytree(sample_model, folder)
    with pytest.raises(ModelFolderError, match=f"{folder} changed after this encoder was pickled"):
        pickle.loads(pickled)


_PEAK = """
import json, resource, sys, warnings
from e5onnx import Encoder

warnings.simplefilter("ignore")
encoder = Encoder(sys.argv[1])
texts = ["word " * 520] * int(sys.argv[2])
embeddings = encoder.encode(texts if sys.argv[3] == "list" else iter(texts))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak, "matrix": embeddings.nbytes}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured in Linux' units")
@pytest.mark.parametrize(("kind", "number"), [("list", 2_500), ("generator", 1_500)])
def test_memory_does_not_grow_with_the_number_of_texts(tiny_model: Path, kind: str, number: int) -> None:
    few, many = (json.loads(_run(_PEAK, tiny_model, texts, kind).stdout) for texts in (100, number))
    growth = (many["peak"] - many["matrix"]) - (few["peak"] - few["matrix"])
    assert growth < 13e6  # 5 MB are buffers; 3 kB that stay of a text would be another 8


def test_nothing_heavy_is_imported_and_nothing_printed(sample_model: Path) -> None:
    done = _run(
        "import sys; from e5onnx import Encoder; Encoder(sys.argv[1]).encode('text'); print(*sorted(sys.modules))",
        sample_model,
    )
    modules = set(done.stdout.split())
    unwanted = {"torch", "transformers", "optimum", "onnx", "e5onnx_export", "huggingface_hub", "tqdm", "requests"}
    assert "onnxruntime" in modules
    assert not modules & unwanted
    assert done.stderr == ""


@pytest.mark.parametrize(("given", "seen"), [(None, "1"), ("0", "0")])
@pytest.mark.parametrize(
    "imports",
    [
        "from e5onnx import Encoder",
        "import e5onnx, onnxruntime",
        pytest.param(
            "import e5onnx_export.quantize",
            marks=pytest.mark.skipif(find_spec("onnx") is None, reason="the extra export is not installed"),
        ),
    ],
)
def test_telemetry_is_off_before_onnxruntime_is_imported(given: str | None, seen: str, imports: str) -> None:
    code = """
import importlib.abc, os, sys
class Spy(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Spy())
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    assert _run(code + imports, environment=environment).stdout == f"{seen}\n"


def test_an_interrupt_stops_a_long_call(encoder: Encoder) -> None:
    # A process started in the background ignores interrupts; then nothing would end the call but its texts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(1, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            encoder.encode(itertools.repeat("a text that is not very long", 50_000))
    finally:
        signal.signal(signal.SIGINT, before)
    assert encoder.encode("text").shape == (384,)


def test_a_model_can_be_on_a_read_only_file_system(sample_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sample_model, tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    Encoder(folder).encode("text")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    for path in [folder, *folder.rglob("*")]:  # so that the temporary folder can be removed
        path.chmod(0o755)


def _run(code: str, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with the tests' helpers to import, and return what it printed."""
    environment = dict(os.environ if environment is None else environment)
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
