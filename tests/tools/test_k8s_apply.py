"""That an unchanged `kubectl apply -k` changes nothing and starts nothing: the real kubectl applies every target twice to
a server that keeps what it gets and fills in what a real one does.
"""

import copy
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools.manifests import ROOT, TARGETS, Resource, containers, rendered
from tools import k8s_check

pytestmark = pytest.mark.slow

APPLY_S = 60
#: Kinds that belong to no namespace.
GLOBAL = {"Namespace"}
#: Lists of a pod that are merged by the name of each entry.
MERGED = {"containers", "env", "volumes", "volumeMounts"}
#: kubectl sends their selectors at every apply, because the API says of them that they are replaced as a whole.
ALWAYS_SENT = {"poddisruptionbudget.policy/gateway", "poddisruptionbudget.policy/processor"}


@dataclass
class Cluster:
    """What an API server keeps, by path, and the patches that changed something of it."""

    kinds: dict[str, dict[str, str]]  # group and version, then the plural, and the kind
    kept: dict[str, Resource] = field(default_factory=dict)
    changes: list[tuple[str, Resource]] = field(default_factory=list)

    def create(self, path: str, resource: Resource) -> Resource:
        resource["metadata"] |= {
            "uid": path,
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        }
        self.kept[f"{path}/{resource['metadata']['name']}"] = with_defaults(resource)
        return resource

    def patch(self, path: str, patch: Resource) -> Resource | None:
        """What it has become, or None where it may not be changed like that."""
        before = self.kept[path]
        after = with_defaults(merged(before, patch))
        if fixed(after) != fixed(before):
            return None
        if after != before:
            self.changes.append((path, patch))
            self.kept[path] = after
        return after

    def pass_the_time(self) -> None:
        """What is deleted some time after it is done is gone."""
        for path, resource in list(self.kept.items()):
            if resource["kind"] == "Job" and "ttlSecondsAfterFinished" in resource["spec"]:
                del self.kept[path]


def merged(into: Any, patch: Any) -> Any:
    """A strategic merge patch applied; of lists, only those of a pod are merged."""
    if not isinstance(into, dict) or not isinstance(patch, dict):
        return patch
    result = copy.deepcopy(into)
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
        elif key in MERGED:
            named = {entry["name"]: entry for entry in result[key]}
            for entry in value:
                if entry.get("$patch") == "delete":
                    del named[entry["name"]]
                else:
                    named[entry["name"]] = merged(named.get(entry["name"], {}), entry)
            result[key] = list(named.values())
        else:
            result[key] = merged(result.get(key), value)
    return result


def fixed(resource: Resource) -> Resource:
    """What of it may never be changed."""
    spec = copy.deepcopy(resource.get("spec", {}))
    match resource["kind"]:
        case "Pod":
            for container in spec["containers"]:
                del container["image"]
        case "Job":
            spec = {"template": spec["template"]}
        case "StatefulSet":
            spec = {key: spec.get(key) for key in ("selector", "serviceName", "volumeClaimTemplates")}
        case "Deployment":
            spec = {"selector": spec["selector"]}
        case _:
            spec = {}
    return spec


def with_defaults(resource: Resource) -> Resource:
    """What a server of 1.33 makes of it, where kubectl compares a list as a whole: defaults of maps disturb nobody."""
    resource = json.loads(json.dumps(resource), object_hook=canonical)
    spec = resource.get("spec", {})
    match resource["kind"]:
        case "StatefulSet":
            for claim in spec.get("volumeClaimTemplates", []):
                claim |= {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "status": {"phase": "Pending"}}
                claim["metadata"].setdefault("creationTimestamp", None)
                claim["spec"].setdefault("volumeMode", "Filesystem")
        case "NetworkPolicy":
            for rule in (*spec.get("ingress", []), *spec.get("egress", [])):
                for port in rule.get("ports", []):
                    port.setdefault("protocol", "TCP")
        case "HTTPRoute":
            for parent in spec["parentRefs"]:
                parent |= {"group": "gateway.networking.k8s.io", "kind": "Gateway"} | parent
            for rule in spec["rules"]:
                for target in rule["backendRefs"]:
                    target |= {"group": "", "kind": "Service", "weight": 1} | target
    return resource


def canonical(map_: Resource) -> Resource:
    """Quantities as the server writes them."""
    for key in {"cpu", "memory", "storage", "sizeLimit", "averageValue"} & map_.keys():
        found = re.fullmatch(r"(\d+)(m|Mi|Gi)?", str(map_[key]))
        assert found, f"{key}: {map_[key]} is no quantity that this test knows"
        number, unit = int(found[1]), found[2] or ""
        for small, large, times in (("m", "", 1000), ("Mi", "Gi", 1024)):
            if unit == small and number % times == 0:
                number, unit = number // times, large
        map_[key] = f"{number}{unit}"
    return map_


FAILURE = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}


class Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def do_GET(self) -> None:
        kinds, path = self.cluster.kinds, self.path.partition("?")[0]
        if path == "/api":
            return self.answer(200, {"kind": "APIVersions", "versions": ["v1"]})
        if path == "/apis":
            groups = [
                {
                    "name": group.partition("/")[0],
                    "versions": [{"groupVersion": group, "version": group.partition("/")[2]}],
                }
                for group in kinds
                if group != "v1"
            ]
            return self.answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        group = path.removeprefix("/apis/").removeprefix("/api/")
        if group in kinds:
            found = [
                {
                    "name": plural,
                    "kind": kind,
                    "namespaced": kind not in GLOBAL,
                    "verbs": ["get", "patch", "create"],
                }
                for plural, kind in kinds[group].items()
            ]
            return self.answer(200, {"kind": "APIResourceList", "groupVersion": group, "resources": found})
        if path in self.cluster.kept:
            return self.answer(200, self.cluster.kept[path])
        return self.answer(404, {**FAILURE, "reason": "NotFound", "code": 404})

    def do_POST(self) -> None:
        self.answer(201, self.cluster.create(self.path.partition("?")[0], self.body()))

    def do_PATCH(self) -> None:
        if after := self.cluster.patch(self.path.partition("?")[0], self.body()):
            self.answer(200, after)
        else:
            self.answer(
                422, {**FAILURE, "reason": "Invalid", "message": "it may not be changed", "code": 422}
            )

    def body(self) -> Resource:
        read: Resource = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return read

    def answer(self, code: int, body: Resource) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def kinds_of(resources: tuple[Resource, ...]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for resource in resources:
        kind = resource["kind"]
        plural = re.sub("ys$", "ies", f"{kind.lower()}s").replace("ingresss", "ingresses")
        found.setdefault(resource["apiVersion"], {})[plural] = kind
    return found


@contextmanager
def serving(cluster: Cluster) -> Iterator[str]:
    handler = type("OfThisCluster", (Handler,), {"cluster": cluster})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def apply(url: str, target: Path, home: Path) -> dict[str, str]:
    """What kubectl says of each resource."""
    kubectl = k8s_check.command("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        [kubectl, "--server", url, "apply", "--validate=false", "-k", str(target)],
        env={"HOME": str(home), "KUBECONFIG": str(home / "none")},
        capture_output=True,
        text=True,
        timeout=APPLY_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("target", TARGETS)
def test_a_second_apply_changes_nothing_and_starts_nothing(target: str, tmp_path: Path) -> None:
    resources = rendered(target)
    cluster = Cluster(kinds_of(resources))
    with serving(cluster) as url:
        first = apply(url, TARGETS[target], tmp_path)
        assert set(first.values()) == {"created"}
        assert len(first) == len(resources)
        cluster.pass_the_time()
        second = apply(url, TARGETS[target], tmp_path)
    assert {name for name, said in second.items() if said != "unchanged"} == ALWAYS_SENT
    assert cluster.changes == []


def test_a_new_release_can_be_applied_over_an_old_one(tmp_path: Path) -> None:
    """Other images, another setting, another text of each program and configuration: nothing says that it is fixed."""
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    overlay = tmp_path / "k8s/overlays/production"
    shutil.copy(ROOT / "k8s/kustomization.yaml", overlay)
    kustomization = overlay / "kustomization.yaml"
    text = (
        kustomization.read_text()
        .replace("- base", "- ../../base")
        .replace("- components", "- ../../components")
    )
    kustomization.write_text(text)
    cluster = Cluster(kinds_of(rendered("k8s")))
    with serving(cluster) as url:
        apply(url, overlay, tmp_path)
        for file in ("components/valkey/make_password.py", "components/valkey/valkey.conf"):
            with (tmp_path / "k8s" / file).open("a") as page:
                page.write("# more\n")
        images = [
            {"name": name, "newTag": "99.0"}
            for name in ("foretell-gateway", "foretell-processor", "valkey/valkey")
        ]
        literals = [{"name": "settings", "behavior": "merge", "literals": ["MAX_QUEUE=7"]}]
        more = yaml.safe_dump({"images": images, "configMapGenerator": literals})
        kustomization.write_text(f"{text}{more}")
        second = apply(url, overlay, tmp_path)
    changed = {name for name, said in second.items() if said == "configured"} - ALWAYS_SENT
    assert changed == {
        "configmap/make-password",
        "deployment.apps/gateway",
        "deployment.apps/processor",
        "pod/make-password",
        "statefulset.apps/redis",
    }
    [pod] = [resource for resource in cluster.kept.values() if resource["kind"] == "Pod"]
    assert [container["image"] for container in containers(pod)] == ["foretell-gateway:99.0"]


def test_the_account_of_a_pod_is_created_before_the_pod(tmp_path: Path) -> None:
    """Nothing tries again to create a pod by itself, and one whose account is not there is refused."""
    cluster = Cluster(kinds_of(rendered("k8s")))
    with serving(cluster) as url:
        order = list(apply(url, TARGETS["k8s"], tmp_path))
    assert order.index("serviceaccount/make-password") < order.index("pod/make-password")
