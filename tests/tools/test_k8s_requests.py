"""What a cluster must have free: the requests of every pod that runs at once, when all Deployments roll out together."""

import re
from decimal import Decimal
from math import ceil

import pytest

from tests.tools.manifests import ROOT, TARGETS, Resource, containers, named, of, pods, rendered

MILLI = Decimal("0.001")
MIB = Decimal(1 << 20)
UNITS = {"": Decimal(1), "m": MILLI, "Ki": MIB / 1024, "Mi": MIB, "Gi": MIB * 1024}
NODE = {"cpu": Decimal(2), "memory": 4096 * MIB}
#: What the pods of the cluster itself ask for on the one node of a kubeadm or kind cluster: the API server 250m,
#: the controller manager 200m, the scheduler, etcd, two CoreDNS and the network plugin 100m each, a metrics server 100m;
#: and less memory than this.
SYSTEM = {"cpu": Decimal("1.05"), "memory": 1024 * MIB}
#: Overlays whose processors ask for more on purpose: they show how.
LARGER = {"k8s/overlays/gpu", "k8s/overlays/production"}


def quantity(text: str) -> Decimal:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[KMG]i)?", text)
    assert found, text
    return Decimal(found[1]) * UNITS[found[2] or ""]


def most_pods(resources: tuple[Resource, ...], name: str) -> int:
    """How many pods of a workload run at once during a rollout, at its smallest size."""
    [workload] = [
        r for r in of(resources, "Deployment", "StatefulSet", "Pod") if r["metadata"]["name"] == name
    ]
    spec = workload["spec"]
    least = spec.get("replicas", 1)
    for scaler in of(resources, "HorizontalPodAutoscaler", "ScaledObject"):
        if scaler["spec"]["scaleTargetRef"]["name"] == name:
            least = max(1, scaler["spec"].get("minReplicas", scaler["spec"].get("minReplicaCount", 1)))
    surge = spec.get("strategy", {}).get("rollingUpdate", {}).get("maxSurge", 0)
    return int(least) + (ceil(least * int(surge[:-1]) / 100) if isinstance(surge, str) else int(surge))


def asked(resources: tuple[Resource, ...], what: str) -> Decimal:
    total = Decimal(0)
    for name, pod in pods(resources).items():
        one = sum(quantity(container["resources"]["requests"][what]) for container in containers(pod))
        total += most_pods(resources, name) * one
    return total


@pytest.mark.parametrize("what", NODE)
@pytest.mark.parametrize("target", sorted(TARGETS.keys() - LARGER))
def test_a_rollout_ends_on_a_node_with_two_cores_and_4_gib(target: str, what: str) -> None:
    assert asked(rendered(target), what) <= NODE[what] - SYSTEM[what]


def documented() -> dict[str, tuple[Decimal, Decimal]]:
    """The rows of docs/deploy.md that say what each target asks for: CPU, memory."""
    rows = re.findall(
        r"^\| `(k8s[\w/-]*)`[^|]* \| ([\d,]+m) \| ([\d,]+Mi) \|",
        (ROOT / "docs/deploy.md").read_text(),
        re.MULTILINE,
    )
    return {
        target: (quantity(cpu.replace(",", "")), quantity(memory.replace(",", "")))
        for target, cpu, memory in rows
    }


def test_the_page_says_what_each_target_asks_for() -> None:
    assert documented() == {
        target: (asked(rendered(target), "cpu"), asked(rendered(target), "memory")) for target in TARGETS
    }


def test_an_autoscaler_does_not_follow_the_requests() -> None:
    """A share of the request would add gateways that have nothing to do as soon as somebody asks for less."""
    [metric] = named(rendered("k8s"), "HorizontalPodAutoscaler", "gateway")["spec"]["metrics"]
    assert metric["resource"]["target"] == {"type": "AverageValue", "averageValue": "500m"}
