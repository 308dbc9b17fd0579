"""MTEB: `E5OnnxModel` in mteb's interface, with the rules of E5's authors, and a program that runs a benchmark.

The rules are those of the authors' scripts (microsoft/unilm, folder e5): in retrieval, queries get the prompt
"query: " and documents "passage: ", title and text joined by a space; in Quora's duplicate questions, and in every
other type of task, reranking included, all texts get "query: ". Vectors have unit length except in classification.

Run `python -m e5onnx.integrations.mteb --help` for the program.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__, terminal
from ..encoder import Embeddings, Encoder, Precision, Provider
from ..errors import E5OnnxError, InputTypeError, InputValueError, MissingDependencyError, in_one_line
from ..terminal import print_line

if TYPE_CHECKING:
    from mteb import TaskMetadata
    from mteb.models.model_meta import ModelMeta
    from mteb.types import Array, PromptType

_PROMPTS = ("query: ", "passage: ")
_RETRIEVAL = ("Retrieval", "InstructionRetrieval")
_CLASSIFICATION = ("Classification", "MultilabelClassification")
_CARD = "MTEB(eng, v1)"
"""The benchmark of the model card's table."""


class E5OnnxModel:
    """An E5 model for `mteb.evaluate`; see the module for prompts and normalisation.

    Attributes:
        encoder: the :class:`e5onnx.Encoder`.
        mteb_model_meta: what mteb stores with the results. Its `experiment_kwargs` hold precision, provider, version
            and fingerprint, so that mteb keeps results of different vectors apart.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        revision: str | None = None,
        *,
        device: str | None = None,
        precision: Precision | None = None,
        provider: Provider = "cpu",
        threads: int | None = None,
        truncate_dim: int | None = None,
        force_truncate_dim: bool = False,
    ) -> None:
        """Load a model.

        Args:
            model_name: a model folder, a checkpoint's folder, or a hub id.
            revision: branch, tag or commit of a hub id.
            device: None or "cpu".
            precision: of the graph; see :class:`e5onnx.Encoder`.
            provider: what runs it; see there.
            threads: threads that one call uses.
            truncate_dim: dimension to cut vectors to; see there.
            force_truncate_dim: cut them even if the model is not known to be trained for it, to measure what it costs.

        Raises:
            InputValueError: the device is not a CPU, or the model does not have E5's prompts.
            MissingDependencyError: mteb is not installed.
        """
        if device not in (None, "cpu"):
            raise InputValueError(f"device must be 'cpu', got {device!r}: e5onnx runs on CPUs only")
        self.encoder = Encoder(
            model_name,
            revision=revision,
            precision=precision,
            provider=provider,
            threads=threads,
            truncate_dim=truncate_dim,
            force_truncate_dim=force_truncate_dim,
        )
        prompts = tuple(self.encoder.tokenizer.prompt_for(role) for role in ("query", "document"))
        if prompts != _PROMPTS:
            raise InputValueError(
                f"E5OnnxModel applies the rules of E5's authors, whose prompts are {_PROMPTS}; those of this model are "
                f"{prompts}. Evaluate it with mteb's own wrapper of sentence-transformers"
            )
        self.mteb_model_meta = _meta(self.encoder)
        self._similarity_fn = self.mteb_model_meta.similarity_fn_name

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        precision: str = "float32",
    ) -> Embeddings:
        """Embed the texts of a task; mteb calls this.

        Args:
            inputs: batches, whose key "text" is a list of texts. mteb has joined a document's title and text.
            task_metadata: decides prompts and normalisation, by its name and type.
            hf_split: makes no difference.
            hf_subset: makes no difference.
            prompt_type: "query" or "document" in retrieval.
            batch_size: makes no difference: results do not depend on it, and the encoder finds the fastest size.
            show_progress_bar: show a tqdm bar that counts texts.
            precision: of the output: "float32".

        Returns:
            Float32 array of shape `[texts, dimension]`.
        """
        if precision != "float32":
            raise InputValueError(
                f"encode_kwargs has precision {precision!r}, but the output is float32; for an int8 graph, load the "
                'model with E5OnnxModel(..., precision="int8")'
            )
        features = task_metadata.type in _CLASSIFICATION
        return self.encoder.encode(
            (text for batch in inputs for text in _texts(batch, task_metadata)),
            prompt=_prompt(task_metadata, prompt_type),
            show_progress_bar=show_progress_bar,
            output_value="pooled_embedding" if features else "sentence_embedding",
            normalize_embeddings=not features,
        )

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Return a tensor of the scores of every vector of the first array with every vector of the second."""
        from mteb.similarity_functions import select_similarity

        return select_similarity(embeddings1, embeddings2, self._similarity_fn)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Return a tensor of the scores of corresponding vectors."""
        from mteb.similarity_functions import select_pairwise_similarity

        return select_pairwise_similarity(embeddings1, embeddings2, self._similarity_fn)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a benchmark, and print the main score of each task."""
    parser = argparse.ArgumentParser(
        prog="python -m e5onnx.integrations.mteb", description="Evaluate an E5 model on MTEB as its authors do."
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder, a checkpoint, or a hub id")
    parser.add_argument("--benchmark", default=_CARD, help=f"a benchmark of mteb (default: {_CARD}, the card's table)")
    parser.add_argument("--task", action="append", metavar="NAME", help="only this task; repeat it for more")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where mteb keeps the results")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--precision", choices=["fp32", "int8", "bf16"], help="default: as for Encoder")
    parser.add_argument("--provider", choices=["cpu", "kernels", "openvino"], default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--dimensions", type=int, metavar="N", help="cut vectors to N components (default: all)")
    parser.add_argument(
        "--force", action="store_true", help="cut vectors even if the model is not known to be trained for it"
    )
    options = parser.parse_args(arguments)
    model = E5OnnxModel(
        options.model,
        options.revision,
        precision=options.precision,
        provider=options.provider,
        threads=options.threads,
        truncate_dim=options.dimensions,
        force_truncate_dim=options.force,
    )
    import mteb

    tasks = mteb.get_benchmark(options.benchmark).tasks
    if options.task:
        known = {task.metadata.name: task for task in tasks}
        if unknown := [name for name in options.task if name not in known]:
            parser.error(f"{options.benchmark} has no task {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        tasks = [known[name] for name in options.task]
    results = mteb.evaluate(model, tasks, cache=mteb.ResultCache(options.output))
    for result in results.task_results:
        print_line(f"{result.task_name:<40} {100 * result.get_score():6.2f}")
    print_line(f"fingerprint {model.encoder.fingerprint}")


def _prompt(task: TaskMetadata, prompt_type: PromptType | None) -> str:
    if task.type not in _RETRIEVAL or "Quora" in task.name:
        return _PROMPTS[0]
    if prompt_type is None:
        raise InputValueError(f"the retrieval task {task.name} does not say which texts are queries")
    return _PROMPTS[prompt_type.value == "document"]


def _texts(batch: Mapping[str, Any], task: TaskMetadata) -> list[str]:
    if "text" not in batch:
        raise InputTypeError(f"the task {task.name} has no texts, but {', '.join(batch)}")
    texts: list[str] = batch["text"]
    return texts


def _meta(encoder: Encoder) -> ModelMeta:
    try:
        from mteb.models.model_meta import ModelMeta
    except ModuleNotFoundError as error:
        if error.name != "mteb":
            raise
        raise MissingDependencyError("E5OnnxModel needs mteb 2: pip install 'e5onnx[mteb]'") from error
    manifest = encoder.manifest
    return ModelMeta(
        loader=None,
        name=manifest.checkpoint if "/" in manifest.checkpoint else f"e5onnx/{manifest.checkpoint}",
        revision=manifest.revision,
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=encoder.max_tokens,
        embed_dim=encoder.dimension,
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["ONNX"],
        similarity_fn_name=manifest.similarity_fn_name,
        use_instructions=True,
        training_datasets=None,
        experiment_kwargs={
            "precision": encoder.precision,
            "provider": encoder.provider,
            "e5onnx": __version__,
            "fingerprint": encoder.fingerprint,
        },
    )


if __name__ == "__main__":
    terminal.prepare()
    try:
        main()
    except (E5OnnxError, OSError) as error:
        terminal.note(f"error: {in_one_line(error)}")
        raise SystemExit(1) from None
