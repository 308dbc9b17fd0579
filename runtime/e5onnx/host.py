"""What this machine is and has, and which provider and precision suit it. Knows no model."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .cpu import available_processors

# Flags of /proc/cpuinfo that decide which kernels run: int8 dot products, bfloat16, matrix units; x86, then ARM.
_X86 = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve")
_INT8_PRODUCTS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
_PACKAGES = {"cpu": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Host:
    """A machine: processor, processors that this process may use, instruction sets, and packages by provider.

    `instructions` has those of the names in /proc/cpuinfo that matter for embeddings, and is None where there is no
    such file (macOS, Windows). The package of a provider, with its version, is None where it is not installed.
    """

    processor: str
    architecture: str
    processors: int
    instructions: tuple[str, ...] | None
    providers: Mapping[str, str | None]


def describe_host(cpuinfo: Path = Path("/proc/cpuinfo")) -> Host:
    """Look at this machine; import nothing for it.

    Args:
        cpuinfo: where Linux describes the processors; another file lets a recorded one be read.

    Example:
        >>> describe_host().processors >= 1
        True
    """
    facts: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:  # not Linux
        pass
    flags = facts.get("flags", facts.get("Features"))
    instructions = None
    if flags is not None:
        instructions = tuple(name for name in dict.fromkeys(_X86 + _ARM) if name in flags.split())
    return Host(
        processor=facts.get("model name") or platform.processor() or "unknown processor",
        architecture=platform.machine(),
        processors=available_processors(),
        instructions=instructions,
        providers={provider: _installed(package) for provider, package in _PACKAGES.items()},
    )


def recommendations(host: Host) -> dict[str, str]:
    """Return what to pass to `Encoder` for "latency", "throughput" and "exactness", and the measurement behind it.

    Figures are of E5-small's shape on two threads: benchmarks/README.md.

    Example:
        >>> sorted(recommendations(describe_host()))
        ['exactness', 'latency', 'throughput']
    """
    instructions = set(host.instructions or ())
    int8 = 'precision="int8"'
    unmeasured = ""
    if not instructions & _INT8_PRODUCTS:
        unmeasured = "; measured with AVX512-VNNI, not on a processor without int8 dot products"
    throughput = f"{int8}: 109 passages/s against 82 of bf16 by OpenVINO and 43 of fp32{unmeasured}"
    if "amx_bf16" in instructions:
        install = "" if host.providers["openvino"] else ", pip install 'e5onnx[openvino]'"
        throughput = f'provider="openvino"{install}: bf16 on AMX, in prototypes 207 passages/s against 180 of int8'
    return {
        "latency": f"{int8}: 4.0 ms a question against 6.7 of fp32{unmeasured}",
        "throughput": throughput,
        "exactness": 'precision="fp32": the vectors of the checkpoint to 1e-5, whatever is in the batch',
    }


def _installed(package: str) -> str | None:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None
