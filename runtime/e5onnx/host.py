"""What this machine has, and which provider and precision suit it. Loads no model and measures nothing."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .cpu import available_processors

# Flags of /proc/cpuinfo that decide which kernels run: int8 dot products, bfloat16 and matrix units, on x86 and ARM.
_X86 = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve")
_INT8_PRODUCTS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
_FOR_KERNELS = {"avx_vnni", "avx512_vnni"}  # recommended there; AVX2 alone is not
_PACKAGES = {"cpu": "onnxruntime", "kernels": "e5onnx-kernels", "openvino": "openvino"}


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        processors: number of processors that this process may use.
        instructions: the instruction sets in /proc/cpuinfo that matter for embeddings; None if there is no such file
            (macOS, Windows).
        providers: the package of each provider with its version, None if it is not installed.
    """

    processor: str
    architecture: str
    processors: int
    instructions: tuple[str, ...] | None
    providers: Mapping[str, str | None]


def describe_host(cpuinfo: Path = Path("/proc/cpuinfo")) -> Host:
    """Describe this machine without importing a provider.

    Args:
        cpuinfo: where Linux describes the processors; tests pass a recorded file.

    Example:
        >>> describe_host().processors >= 1
        True
    """
    facts: dict[str, str] = {}
    with suppress(OSError):  # not Linux
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    flags = facts.get("flags", facts.get("Features"))
    known = None if flags is None else tuple(name for name in dict.fromkeys(_X86 + _ARM) if name in flags.split())
    return Host(
        processor=facts.get("model name") or platform.processor() or "unknown processor",
        architecture=platform.machine(),
        processors=available_processors(),
        instructions=known,
        providers={provider: _installed(package) for provider, package in _PACKAGES.items()},
    )


def recommendations(host: Host) -> dict[str, str]:
    """Return the precision or provider that suits "latency", "throughput" and "exactness", and why.

    Example:
        >>> sorted(recommendations(describe_host()))
        ['exactness', 'latency', 'throughput']
    """
    instructions = set(host.instructions or ())
    exactness = "precision fp32: the checkpoint's vectors except for rounding, whatever else is in the batch"
    if instructions & _FOR_KERNELS:
        int8 = f"{_with(host, 'kernels')}, precision int8: written for the int8 dot products of this processor"
    elif instructions & _INT8_PRODUCTS:
        int8 = "precision int8: this processor has instructions for int8 dot products"
    else:
        int8 = "precision int8, but compare it with fp32: no instructions for int8 dot products are known here"
    throughput = int8
    if "amx_bf16" in instructions:
        throughput = f"{_with(host, 'openvino')}: it computes in bf16 on the matrix units (AMX) of this processor"
    if "avx512_bf16" in instructions:
        exactness += f". Nearly as exact, and faster: {_with(host, 'kernels')}, precision bf16"
    return {"latency": int8, "throughput": throughput, "exactness": exactness}


def _with(host: Host, provider: str) -> str:
    """Return a provider, and how to install it if it is not."""
    install = "" if host.providers[provider] else f" (pip install 'e5onnx[{provider}]')"
    return f"provider {provider}{install}"


def _installed(package: str) -> str | None:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None
