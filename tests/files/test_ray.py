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
from e5onnx.errors import ClusterError
from e5onnx.files import JobChangedError, RowError, embed_files, ray_engine
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
    cluster: Any, tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    # what a worker reads is compared with the plan, too
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(corpus.read_bytes())
    run_parts = ray_engine.run_parts

    def change_and_run(*arguments: Any, **options: Any) -> Iterator[Any]:
        changed.write_bytes(corpus.read_bytes()[::-1])
        yield from run_parts(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "run_parts", change_and_run)
        with pytest.raises(JobChangedError, match=r"changed\.jsonl has changed since it was read first"):
            embed_files(encoder, [str(changed)], tmp_path / "changed", engine="ray", address=cluster.address)
    assert not list((tmp_path / "changed").glob("part-*"))
    assert not list((tmp_path / "changed/_e5onnx/done").iterdir())

    # of a folder that is another one on a node nothing is taken
    def run_another(model: Any, plan: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        yield from run_parts(model, plan._replace(sha256="0"), *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "run_parts", run_another)
        with pytest.raises(ClusterError, match="is not the same folder on this node"):
            embed_files(encoder, [str(corpus)], tmp_path / "other", engine="ray", address=cluster.address)

    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"text": "fine"}\n{"text": 1}\n')
    with pytest.raises(RowError, match="row 2: column 'text' is a number"):
        embed_files(encoder, [str(bad)], tmp_path / "bad", part_rows=50, engine="ray", address=cluster.address)
