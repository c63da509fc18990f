"""The examples of a deployment: they parse, and what they name exists. Neither was built or applied here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream2llm_rag.engine.metrics import COUNTERS, GAUGES
from stream2llm_rag.serve.arguments import limits_of, parse
from stream2llm_rag.serve.limits import Limits

ROOT = Path(__file__).parents[2]
MANIFESTS = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "stream2llm.yaml").read_text()))
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def manifest(kind: str) -> dict[str, Any]:
    [found] = [manifest for manifest in MANIFESTS if manifest["kind"] == kind]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def pod() -> dict[str, Any]:
    template: dict[str, Any] = manifest("Deployment")["spec"]["template"]
    return template


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def test_every_manifest_says_what_it_is() -> None:
    assert [m["kind"] for m in MANIFESTS] == ["Secret", "PersistentVolumeClaim", "Deployment", "Service", "PodMonitor"]
    assert all(m["apiVersion"] and m["metadata"]["name"] for m in MANIFESTS)


def test_the_arguments_of_the_pod_are_taken_by_the_command(container: dict[str, Any]) -> None:
    args = parse(container["args"])
    assert limits_of(args) == Limits()
    assert args.port == container["ports"][0]["containerPort"]


def test_selectors_find_the_pods(pod: dict[str, Any]) -> None:
    labels = pod["metadata"]["labels"]
    assert manifest("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    assert manifest("PodMonitor")["spec"]["selector"]["matchLabels"] == labels


def test_ports_volumes_and_the_secret_are_those_that_are_there(pod: dict[str, Any], container: dict[str, Any]) -> None:
    ports = {port["name"] for port in container["ports"]}
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["port"] for probe in probes} <= ports
    assert {port["targetPort"] for port in manifest("Service")["spec"]["ports"]} <= ports
    assert {end["port"] for end in manifest("PodMonitor")["spec"]["podMetricsEndpoints"]} <= ports
    assert int(pod["metadata"]["annotations"]["prometheus.io/port"]) == container["ports"][0]["containerPort"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["spec"]["volumes"]}
    claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v}
    assert claims == {manifest("PersistentVolumeClaim")["metadata"]["name"]}
    [key] = [variable["valueFrom"]["secretKeyRef"] for variable in container["env"] if variable["name"] == "VLLM_API_KEY"]
    secret = manifest("Secret")
    assert key["name"] == secret["metadata"]["name"]
    assert key["key"] in secret["stringData"]


def test_a_pod_is_given_longer_to_end_than_its_answers(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["spec"]["terminationGracePeriodSeconds"] > parse(container["args"]).shutdown_timeout > 0


def test_the_image_runs_the_command_with_what_it_copied() -> None:
    [entrypoint] = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    assert json.loads(entrypoint) == ["stream2llm", "serve"]
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]
    assert all((ROOT / name).exists() for name in copied)
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(kept) == sorted(copied)


def test_the_image_has_the_vllm_that_is_tested() -> None:
    [version] = re.findall(r"^FROM vllm/vllm-openai:v(.*)$", DOCKERFILE, re.MULTILINE)
    assert f"vllm=={version}\n" in (ROOT / "requirements" / "gpu.txt").read_text()


def health_check() -> list[str]:
    [command] = re.findall(r"^HEALTHCHECK .*\n *CMD (.*)$", DOCKERFILE, re.MULTILINE)
    interpreter, *rest = json.loads(command)
    assert interpreter == "python3"
    return [sys.executable, *rest]


@pytest.mark.parametrize(("status", "is_well"), [(200, True), (503, False)])
def test_the_health_check_asks_where_it_is_told_to(status: int, is_well: bool) -> None:
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.timeout = 30
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        url = f"http://127.0.0.1:{server.server_port}/health"
        done = subprocess.run(health_check(), env={**os.environ, "STREAM2LLM_HEALTH_URL": url}, capture_output=True)
        answering.join()
    assert asked == ["/health"]
    assert (done.returncode == 0) == is_well


def test_unless_it_is_told_the_health_check_asks_where_the_command_listens() -> None:
    [url] = re.findall(r"^ENV STREAM2LLM_HEALTH_URL=(.*)$", DOCKERFILE, re.MULTILINE)
    assert url == f"http://127.0.0.1:{parse(['model']).port}/health"


def test_series_that_the_guide_names_exist() -> None:
    exported = {series.family for series in GAUGES} | {f"{series.family}_total" for series in COUNTERS}
    named = set(re.findall(r"stream2llm:\w+", (ROOT / "docs" / "deploy.md").read_text()))
    assert named
    assert named <= exported
