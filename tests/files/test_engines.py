"""The local engine, and the same parts from a Ray cluster of two nodes, whatever happens to its actors and nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpora import near, parts, write_jsonl
from e5onnx import Encoder
from e5onnx.errors import ClusterError, InputValueError
from e5onnx.files import JobChangedError, RowError, Summary, embed_files, engines
from texts import TEXTS

ROWS = [{"text": TEXTS[number % len(TEXTS)] + str(number)} for number in range(40)]
PART_ROWS = 4
# Ray leaves sockets and files to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # or it announces a change of its own
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}  # notice a lost node
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": soon})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def local(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Summary]:
    """A corpus, and what the local engine makes of it."""
    folder = tmp_path_factory.mktemp("local")
    corpus = write_jsonl(folder / "corpus.jsonl", ROWS)
    return corpus, folder / "out", embed_files(encoder, [corpus], folder / "out", part_rows=PART_ROWS)


def embed(encoder: Encoder, corpus: Path, output: Path, cluster: Any, **options: Any) -> Summary:
    options = {"part_rows": PART_ROWS, "engine": "ray", "address": cluster.address, **options}
    return embed_files(encoder, [corpus], output, **options)


@pytest.mark.parametrize("output_format", ["parquet", "npy"])
def test_a_part_may_have_more_texts_than_are_run_at_once(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_format: Literal["parquet", "npy"]
) -> None:
    monkeypatch.setattr(engines, "_WINDOW", 3)
    texts = [f"text {number} " * number for number in range(1, 9)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    embed_files(encoder, [path], tmp_path / "out", output_format=output_format)
    if output_format == "npy":
        vectors = np.load(tmp_path / "out/part-000000.npy")
    else:
        vectors = np.array(pq.read_table(tmp_path / "out/part-000000.parquet").column("embedding").to_pylist())
    near(vectors, encoder.encode_document(texts))


def test_actors_run_the_provider_of_the_encoder(cluster: Any, sample_model: Path, local: Any, tmp_path: Path) -> None:
    kernels = pytest.importorskip("e5onnx_kernels")
    if not kernels.supports("int8"):
        pytest.skip("e5onnx-kernels has no int8 for this processor")
    encoder = Encoder(sample_model, provider="kernels", precision="int8", threads=1)
    embed_files(encoder, [local[0]], tmp_path / "local", part_rows=PART_ROWS)
    embed(encoder, local[0], tmp_path / "out", cluster)
    assert parts(tmp_path / "out") == parts(tmp_path / "local")
    vectors = pq.read_table(tmp_path / "out/part-000000.parquet").column("embedding").to_pylist()
    near(vectors, encoder.encode_document([row["text"] for row in ROWS[:PART_ROWS]]))


def test_an_actor_killed_in_the_middle_of_a_part_is_restarted(
    cluster: Any, encoder: Encoder, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, expected, summary = local
    killed = tmp_path / "killed"

    class Mortal(engines.Worker):
        def run(self, number: int) -> Any:
            if number == 3 and not killed.exists():
                killed.touch()
                engines.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
            return super().run(number)

    monkeypatch.setattr(engines, "Worker", Mortal)
    assert embed(encoder, corpus, tmp_path / "out", cluster) == summary
    assert killed.exists()
    assert parts(tmp_path / "out") == parts(expected)


def test_a_part_that_kills_every_actor_ends_the_run(
    cluster: Any, encoder: Encoder, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mortal(engines.Worker):
        def run(self, number: int) -> Any:
            return os.kill(os.getpid(), signal.SIGKILL) if number == 3 else super().run(number)

    monkeypatch.setattr(engines, "Worker", Mortal)
    monkeypatch.setattr(engines, "_MOST_RESTARTS", 1)
    with pytest.raises(ClusterError, match="Ray failed: "):
        embed(encoder, local[0], tmp_path / "out", cluster)


def test_what_an_actor_reads_is_compared_with_the_plan(
    cluster: Any, encoder: Encoder, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_jsonl(tmp_path / "changed.jsonl", ROWS)
    run_on_ray = engines.run_on_ray

    def change_and_run(*arguments: Any, **options: Any) -> Iterator[Any]:
        corpus.write_bytes(corpus.read_bytes()[::-1])
        yield from run_on_ray(*arguments, **options)

    def run_another(encoder: Encoder, plan: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        yield from run_on_ray(encoder, plan._replace(sha256="0"), *arguments, **options)

    monkeypatch.setattr(engines, "run_on_ray", change_and_run)
    with pytest.raises(JobChangedError, match=r"changed\.jsonl has changed since it was first read"):
        embed(encoder, corpus, tmp_path / "changed", cluster)
    monkeypatch.setattr(engines, "run_on_ray", run_another)
    with pytest.raises(ClusterError, match="is not the same folder on this node"):
        embed(encoder, local[0], tmp_path / "other", cluster)
    for folder in ("changed", "other"):
        assert not parts(tmp_path / folder)
        assert not list((tmp_path / folder / "_e5onnx/done").iterdir())


def test_errors_are_those_of_the_local_engine(
    cluster: Any, encoder: Encoder, tiny_model: Path, local: Any, tmp_path: Path
) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"text": "fine"}, {"text": 1}])
    with pytest.raises(RowError, match="line 2: column 'text' is a number"):
        embed(encoder, bad, tmp_path / "bad", cluster)
    with pytest.raises(InputValueError, match="no node of the cluster has 2 processors for an actor: lower --threads"):
        embed(Encoder(tiny_model, threads=2), local[0], tmp_path / "wide", cluster)


def test_a_lost_node_gives_its_parts_to_the_other(
    cluster: Any, encoder: Encoder, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, expected, summary = local
    (lost,) = cluster.worker_nodes
    run_on_ray = engines.run_on_ray

    def run_and_lose(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, done in enumerate(run_on_ray(*arguments, **options)):
            if number == 1:
                cluster.remove_node(lost, allow_graceful=False)
            yield done

    monkeypatch.setattr(engines, "run_on_ray", run_and_lose)
    assert embed(encoder, corpus, tmp_path / "out", cluster) == summary
    assert not cluster.worker_nodes
    assert parts(tmp_path / "out") == parts(expected)


def test_a_cluster_that_does_not_answer_is_reported(encoder: Encoder, local: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ClusterError, match=r"there is no Ray cluster at 127\.0\.0\.1:1: "):
        embed_files(encoder, [local[0]], tmp_path / "out", engine="ray", address="127.0.0.1:1")
