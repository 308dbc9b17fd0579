"""The Dockerfile and the Kubernetes manifest: checked by their own tools, and against what the server does."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from e5onnx.cli import parse
from e5onnx.server.app import OPEN_PATHS
from e5onnx.server.options import ServerOptions
from e5onnx.server.protocol import WRITE_TIMEOUT

DOCKERFILE = Path("deploy/Dockerfile").read_text(encoding="utf-8")
DEPLOYMENT, SERVICE = yaml.safe_load_all(Path("deploy/kubernetes.yaml").read_text(encoding="utf-8"))
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def instruction(name: str) -> list[str]:
    """Return the exec form of the last instruction of this name."""
    words: list[str] = json.loads(re.findall(rf"^\s*{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])
    return words


def arguments() -> Any:
    """Return what the server gets from the image and the manifest, in a namespace `apps`."""
    given = (argument.replace("$(NAMESPACE)", "apps") for argument in CONTAINER["args"])
    return parse([*instruction("ENTRYPOINT")[1:], *given])


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "deploy/Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_starts_the_server_with_a_number_as_its_user() -> None:
    given = parse([*instruction("ENTRYPOINT")[1:], *instruction("CMD")])
    assert re.findall(r"^ARG PRECISION=(\w+)$", DOCKERFILE, re.MULTILINE) == [given.precision]
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE) == [str(given.port)]
    assert f"127.0.0.1:{given.port}/health" in instruction("HEALTHCHECK.*\\\\\n\\s+CMD")[-1]
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["65532:65532"]


def test_kubernetes_knows_every_field() -> None:
    for resource in (DEPLOYMENT, SERVICE):
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_the_service_finds_the_pods_and_the_pods_their_port() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == arguments().port
    assert SERVICE["spec"]["ports"][0]["targetPort"] == port["name"]
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(arguments().port)
    name = SERVICE["metadata"]["name"]
    names = [name, f"{name}.apps", f"{name}.apps.svc", f"{name}.apps.svc.cluster.local"]
    assert list(arguments().allowed_hosts) == names


def test_probes_need_no_key_and_only_the_process_itself_ends_a_pod() -> None:
    probes = {name: CONTAINER[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["port"] for probe in probes.values()} == {CONTAINER["ports"][0]["name"]}
    assert {probe["path"] for probe in probes.values()} <= OPEN_PATHS
    # /health turns red as the server ends, while it still has requests to answer
    assert [probe["path"] for probe in probes.values()] == ["/health", "/health", "/ping"]


def test_the_grace_period_is_long_enough_for_every_request() -> None:
    given, defaults = arguments(), ServerOptions()
    assert given.request_timeout == defaults.request_timeout
    answered = given.drain_seconds + math.ceil(given.request_timeout + WRITE_TIMEOUT) + 5  # as in serve.py
    assert answered <= POD["terminationGracePeriodSeconds"] < 2 * answered


def test_the_memory_holds_what_was_measured_and_what_the_limits_allow() -> None:
    measured = json.loads(Path("benchmarks/results/server_soak.json").read_text(encoding="utf-8"))
    assert (measured["server"], arguments().precision) == ("e5onnx-int8", "int8")
    most = measured["megabytes_at_most"]
    assert f"{most:.0f} MB" in Path("deploy/kubernetes.yaml").read_text(encoding="utf-8")
    resources = CONTAINER["resources"]
    requested, limit = (int(resources[name]["memory"].removesuffix("Mi")) for name in ("requests", "limits"))
    assert most * 1.2 < requested
    assert most + 64 + 64 < limit * 0.8
    assert resources["requests"]["cpu"] == str(measured["threads"])
