"""The rendered manifests, and what the tests of them ask again and again."""

from pathlib import Path
from typing import Any

from tools import k8s_check

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {path.relative_to(ROOT).as_posix(): path for path in k8s_check.targets()}

Resource = dict[str, Any]


def rendered(target: str) -> tuple[Resource, ...]:
    return k8s_check.render(TARGETS[target])


def of(resources: tuple[Resource, ...], *kinds: str) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] in kinds]


def named(resources: tuple[Resource, ...], kind: str, name: str) -> Resource:
    [found] = [resource for resource in of(resources, kind) if resource["metadata"]["name"] == name]
    return found


def pods(resources: tuple[Resource, ...]) -> dict[str, Resource]:
    """The pod template of each workload, by the workload's name, and the pods that stand by themselves."""
    return {
        workload["metadata"]["name"]: workload["spec"].get("template", workload)
        for workload in of(resources, "Deployment", "StatefulSet", "Pod")
    }


def labels(pod: Resource) -> dict[str, str]:
    return dict(pod["metadata"]["labels"])


def containers(pod: Resource) -> list[Resource]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def matches(selector: Resource, have: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if have.get(expression["key"]) not in expression["values"]:
            return False
    return all(have.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def ports(pod: Resource) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in containers(pod)
        for port in container.get("ports", [])
    }


def settings(resources: tuple[Resource, ...]) -> dict[str, str]:
    [found] = [r for r in of(resources, "ConfigMap") if r["metadata"]["name"].startswith("settings-")]
    return dict(found["data"])
