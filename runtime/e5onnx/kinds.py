"""The kinds of a model, each a provider with a precision: which of them a folder and this host can run, and why not."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .errors import InputValueError, MissingDependencyError, ModelFolderError, in_one_line

if TYPE_CHECKING:
    from .encoder import Encoder, Precision, Provider


class Kind(NamedTuple):
    """A provider with a precision."""

    provider: Provider
    precision: Precision


class LeftOut(NamedTuple):
    """A kind that cannot run, with the reason."""

    provider: str
    precision: str
    reason: str


KINDS = [
    Kind("cpu", "fp32"),
    Kind("cpu", "int8"),
    Kind("kernels", "bf16"),
    Kind("kernels", "int8"),
    Kind("openvino", "fp32"),
    Kind("openvino", "bf16"),
]


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the options that choose kinds."""
    for name, place, example in [("provider", 0, "cpu,kernels"), ("precision", 1, "fp32,int8")]:
        group.add_argument(
            f"--{name}",
            action="extend",
            type=_names({kind[place] for kind in KINDS}),
            metavar="NAMES",
            help=f"only these, such as {example}; may be repeated (default: all that the model and this host have)",
        )
    group.add_argument(
        "--threads", type=int, metavar="N", help="threads (default: E5ONNX_THREADS, or the available processors)"
    )


def find_kinds(options: argparse.Namespace) -> tuple[list[Kind], list[LeftOut]]:
    """Return the wanted kinds that can run, and those that cannot.

    Raises:
        InputValueError: nothing can run, or nothing with a provider or precision that the user named.
    """
    kinds, left_out = [], []
    for kind in KINDS:
        provider, precision = kind
        if provider not in (options.provider or [provider]) or precision not in (options.precision or [precision]):
            continue
        try:
            load(options, kind)
        except (InputValueError, MissingDependencyError, ModelFolderError) as error:
            if isinstance(error, ModelFolderError) and provider == "cpu":
                raise
            left_out.append(LeftOut(provider, precision, in_one_line(error)))
        else:
            kinds.append(kind)
    for named, others, place in [(options.provider, options.precision, 0), (options.precision, options.provider, 1)]:
        for name in named or []:
            if not any(kind[place] == name for kind in kinds):
                reasons = dict.fromkeys(each.reason for each in left_out if name == each[place])
                reason = "; ".join(reasons) or f"it does not go with {', '.join(others)}"
                raise InputValueError(f"{name} cannot run: {reason}")
    if not kinds:
        raise InputValueError("; ".join(dict.fromkeys(each.reason for each in left_out)))
    return kinds, left_out


def load(options: argparse.Namespace, kind: Kind) -> Encoder:
    """Return the encoder of a kind."""
    from .encoder import Encoder

    return Encoder(
        options.model,
        provider=kind.provider,
        precision=kind.precision,
        threads=options.threads,
        revision=options.revision,
    )


def _names(known: set[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(sorted(known))}")
        return found

    return names
