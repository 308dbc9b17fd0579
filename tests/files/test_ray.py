"""The same parts from a Ray cluster of several nodes on this machine, one of which is lost in the middle."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e5onnx import Encoder
from e5onnx.files import RowError, embed_files
from texts import TEXTS

ray = pytest.importorskip("ray")
ROWS = 600
PART = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [{"text": TEXTS[number % len(TEXTS)] + str(number)} for number in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # or it announces a change of its own
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


@pytest.mark.filterwarnings("ignore")  # Ray leaves sockets and files to the garbage collector
def test_a_cluster_writes_the_same_bytes_even_if_a_node_is_lost(
    cluster: Any, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    local = embed_files(Encoder(tiny_model, threads=2), [str(corpus)], tmp_path / "local", part_rows=PART)
    encoder = Encoder(tiny_model, threads=1)
    lost = next(iter(cluster.worker_nodes))

    def lose_a_node() -> None:
        while len(list((tmp_path / "ray").glob("part-*"))) < 5:
            time.sleep(0.01)
        cluster.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=lose_a_node)
    thread.start()
    summary = embed_files(
        encoder, [str(corpus)], tmp_path / "ray", part_rows=PART, engine="ray", address=cluster.address
    )
    thread.join()
    assert summary == local
    assert parts(tmp_path / "ray") == parts(tmp_path / "local")

    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"text": "fine"}\n{"text": 1}\n')
    with pytest.raises(RowError, match="row 2: column 'text' is a number"):
        embed_files(encoder, [str(bad)], tmp_path / "bad", part_rows=50, engine="ray", address=cluster.address)
