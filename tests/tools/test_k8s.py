"""What no schema sees in the manifests: that names, ports, selectors and settings fit together and fit the services, that
pods may do no more than they need, and that the parts with a program of their own (the server's configuration, the pod
that makes the password) work. Everything is asked of the rendered YAML, of k8s/ and of each overlay.
"""

import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from common.http.probes import probe_routes
from common.settings import CommonSettings, GatewaySettings, ProcessorSettings, read_settings
from common.store import keys
from common.store.connections.redis_url import parse_url
from tests.conftest import wait_until
from tests.tools.manifests import (
    ROOT,
    TARGETS,
    Resource,
    containers,
    labels,
    matches,
    named,
    of,
    pods,
    ports,
    rendered,
    settings,
)
from tools import embedded_server, k8s_check
from tools.child_process import ending, start_child
from tools.ports import free_port

VALKEY = ROOT / "k8s/components/valkey"
#: Which settings each service reads.
SERVICES: dict[str, type[CommonSettings]] = {"gateway": GatewaySettings, "processor": ProcessorSettings}
#: Secrets that are not in the manifests, and their keys: made in the cluster or by hand.
SECRETS = {
    "redis": {"password", "url", "valkey.conf"},
    "api-keys": {"keys", "admin"},
    "redis-tls": {"ca.crt", "tls.crt", "tls.key"},
}
COMPONENT = "app.kubernetes.io/component"


@pytest.fixture(params=TARGETS)
def resources(request: pytest.FixtureRequest) -> tuple[Resource, ...]:
    return k8s_check.render(TARGETS[request.param])


# -- names and selectors


def test_every_selector_selects_something(resources: tuple[Resource, ...]) -> None:
    templates = [labels(pod) for pod in pods(resources).values()]
    services = [service["metadata"]["labels"] for service in of(resources, "Service")]
    for resource in resources:
        spec, who = resource.get("spec", {}), k8s_check.name_of(resource)
        match resource["kind"]:
            case "Service":
                assert any(matches({"matchLabels": spec["selector"]}, have) for have in templates), who
            case "PodDisruptionBudget" | "PodMonitor":
                assert any(matches(spec["selector"], have) for have in templates), who
            case "ServiceMonitor":
                assert any(matches(spec["selector"], have) for have in services), who
            case "NetworkPolicy":
                selectors = [spec["podSelector"]]
                for rule in (*spec.get("ingress", []), *spec.get("egress", [])):
                    for peer in (*rule.get("from", []), *rule.get("to", [])):
                        if "namespaceSelector" not in peer:
                            selectors.append(peer["podSelector"])
                for selector in selectors:
                    assert any(matches(selector, have) for have in templates), who
            case "Deployment" | "StatefulSet":
                have = labels(spec["template"])
                assert matches(spec["selector"], have), who
                for constraint in spec["template"]["spec"].get("topologySpreadConstraints", []):
                    assert matches(constraint["labelSelector"], have), who
                    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway", "one node must be enough"


def test_each_workload_selects_its_own_pods_only(resources: tuple[Resource, ...]) -> None:
    for workload in of(resources, "Deployment", "StatefulSet"):
        selected = [
            name
            for name, pod in pods(resources).items()
            if matches(workload["spec"]["selector"], labels(pod))
        ]
        assert selected == [workload["metadata"]["name"]]


def test_everything_carries_our_label_and_is_in_the_one_namespace(resources: tuple[Resource, ...]) -> None:
    [namespace] = of(resources, "Namespace")
    for resource in resources:
        assert resource["metadata"]["labels"]["app.kubernetes.io/name"] == "foretell", k8s_check.name_of(
            resource
        )
        if resource is not namespace:
            assert resource["metadata"]["namespace"] == namespace["metadata"]["name"]
    for pod in pods(resources).values():
        assert labels(pod).keys() >= {"app.kubernetes.io/name", "app.kubernetes.io/part-of", COMPONENT}


def test_what_is_referred_to_exists(resources: tuple[Resource, ...]) -> None:
    exist = {(resource["kind"], resource["metadata"]["name"]) for resource in resources}
    for name, pod in pods(resources).items():
        spec = pod["spec"]
        wanted = {("ServiceAccount", spec["serviceAccountName"])}
        secrets: list[tuple[str, str]] = []
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                wanted.add(("ConfigMap", volume["configMap"]["name"]))
            if "persistentVolumeClaim" in volume:
                wanted.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
            if "secret" in volume:
                secrets += [
                    (volume["secret"]["secretName"], item["key"]) for item in volume["secret"]["items"]
                ]
            for source in volume.get("projected", {}).get("sources", []):
                secrets += [(source["secret"]["name"], item["key"]) for item in source["secret"]["items"]]
        for container in containers(pod):
            wanted |= {
                ("ConfigMap", source["configMapRef"]["name"]) for source in container.get("envFrom", [])
            }
            for variable in container.get("env", []):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    secrets.append((reference["name"], reference["key"]))
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounts <= {volume["name"] for volume in spec.get("volumes", [])}
        assert wanted <= exist, name
        assert all(key in SECRETS[secret] for secret, key in secrets), name
    for policy in of(resources, "HorizontalPodAutoscaler", "ScaledObject"):
        target = policy["spec"]["scaleTargetRef"]
        assert (target.get("kind", "Deployment"), target["name"]) in exist


def test_services_monitors_and_routes_lead_to_ports_that_exist(resources: tuple[Resource, ...]) -> None:
    for service in of(resources, "Service"):
        for pod in pods(resources).values():
            if matches({"matchLabels": service["spec"]["selector"]}, labels(pod)):
                assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports(pod).keys()
    for monitor in of(resources, "ServiceMonitor"):
        for service in of(resources, "Service"):
            if matches(monitor["spec"]["selector"], service["metadata"]["labels"]):
                have = {port["name"] for port in service["spec"]["ports"]}
                assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= have
    for monitor in of(resources, "PodMonitor"):
        for pod in pods(resources).values():
            if matches(monitor["spec"]["selector"], labels(pod)):
                assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports(
                    pod
                ).keys()
    for ingress in of(resources, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                service = named(resources, "Service", backend["name"])
                assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    for route in of(resources, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                service = named(resources, "Service", backend["name"])
                assert backend["port"] in {port["port"] for port in service["spec"]["ports"]}


def test_every_component_is_in_an_overlay() -> None:
    used = {
        Path(component).name
        for target in TARGETS.values()
        for component in yaml.safe_load((target / "kustomization.yaml").read_text())["components"]
    }
    assert used == {path.name for path in (ROOT / "k8s/components").iterdir()}


# -- the services


def test_the_ports_and_probes_are_those_of_the_services(resources: tuple[Resource, ...]) -> None:
    async def ready() -> None:
        return None

    paths = {route.path for route in probe_routes(ready)}
    expected = {
        "gateway": ("http", GatewaySettings.model_fields["port"].default),
        "processor": ("probes", ProcessorSettings.model_fields["probe_port"].default),
    }
    for name, (port, number) in expected.items():
        pod = pods(resources)[name]
        [container] = containers(pod)
        assert ports(pod) == {port: number}
        probes = {probe: container[f"{probe}Probe"] for probe in ("startup", "readiness", "liveness")}
        assert {probe["httpGet"]["port"] for probe in probes.values()} == {port}
        assert {probe["httpGet"]["path"] for probe in probes.values()} <= paths
        # what asks Redis may take a pod out of the Service, never restart it
        assert {name: probe["httpGet"]["path"] for name, probe in probes.items()} == {
            "startup": "/livez",
            "readiness": "/readyz",
            "liveness": "/livez",
        }
        assert not {"PORT", "PROBE_PORT", "HOST"} & settings(resources).keys(), "the manifests name the ports"


def test_every_variable_is_a_setting_and_its_value_is_accepted(
    resources: tuple[Resource, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # no .env
    known = {name.upper() for kind in SERVICES.values() for name in kind.model_fields}
    configured = settings(resources)
    assert configured.keys() <= known
    assert not {"REDIS_URL", "API_KEYS", "ADMIN_API_KEYS", "MODEL"} & configured.keys()
    for name, kind in SERVICES.items():
        [container] = containers(pods(resources)[name])
        own = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert own.keys() <= {field.upper() for field in kind.model_fields}
        for variable, value in {**configured, **own}.items():
            monkeypatch.setenv(variable, value or "")
        assert read_settings(kind).drain_s == float(configured["DRAIN_S"])


def test_a_pod_has_the_time_to_stop(resources: tuple[Resource, ...]) -> None:
    drain_s = float(settings(resources)["DRAIN_S"])
    for name in SERVICES:
        pod = pods(resources)[name]
        before = [
            container["lifecycle"]["preStop"]["sleep"]["seconds"]
            for container in containers(pod)
            if "lifecycle" in container
        ]
        assert pod["spec"]["terminationGracePeriodSeconds"] > sum(before) + drain_s
        assert bool(before) == (name == "gateway"), "only a gateway has clients that do not know yet"


# -- what pods may do


def test_every_pod_meets_the_restricted_standard(resources: tuple[Resource, ...]) -> None:
    [namespace] = of(resources, "Namespace")
    for mode in ("enforce", "warn", "audit"):
        assert namespace["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"] == "restricted"
    for name, pod in pods(resources).items():
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= {
                "configMap",
                "secret",
                "emptyDir",
                "projected",
                "persistentVolumeClaim",
            }, name
        for container in containers(pod):
            security = {**spec["securityContext"], **container["securityContext"]}
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] > 0
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True, "not in the standard, but in ours"
            assert "privileged" not in security


def test_the_images_user_is_the_pods(resources: tuple[Resource, ...]) -> None:
    [uid] = set(re.findall(r"^USER (\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for name in SERVICES:
        assert pods(resources)[name]["spec"]["securityContext"]["runAsUser"] == int(uid)


def test_only_the_password_pod_may_talk_to_the_cluster(resources: tuple[Resource, ...]) -> None:
    for account in of(resources, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    with_token = {
        name for name, pod in pods(resources).items() if pod["spec"]["automountServiceAccountToken"]
    }
    assert with_token <= {"make-password"}
    for role in of(resources, "Role"):
        assert role["rules"] == [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}]
    assert not of(resources, "ClusterRole", "ClusterRoleBinding")


def test_no_service_variables_collide_with_settings(resources: tuple[Resource, ...]) -> None:
    assert all(pod["spec"]["enableServiceLinks"] is False for pod in pods(resources).values())


def test_no_secret_is_in_the_manifests(resources: tuple[Resource, ...]) -> None:
    assert not of(resources, "Secret")
    assert not re.search(
        r"redis(s|\+\w+)?://\S*:[^@\s{]+@", json.dumps(of(resources, "ConfigMap", "Deployment"))
    )


def test_every_container_has_requests_and_limits(resources: tuple[Resource, ...]) -> None:
    for pod in pods(resources).values():
        for container in containers(pod):
            for bound in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][bound].keys(), container["name"]


def test_images_have_a_version(resources: tuple[Resource, ...]) -> None:
    for pod in pods(resources).values():
        for container in containers(pod):
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            assert re.search(r"\d", tag), container["image"]
            assert tag != "latest"
            assert container["imagePullPolicy"] == "IfNotPresent"


def test_our_images_are_those_of_this_release() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {c["image"] for pod in pods(rendered("k8s")).values() for c in containers(pod)}
    assert {image for image in images if image.startswith("foretell-")} == {
        f"foretell-gateway:{version}",
        f"foretell-processor:{version}",
    }


# -- network

#: Where somebody stands: a component of ours, or a namespace.
ANYWHERE = "anywhere"


def _admits(peers: list[Resource] | None, who: str, pods_: dict[str, Resource]) -> bool:
    if peers is None:
        return True
    for peer in peers:
        if "namespaceSelector" in peer:
            if peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == who:
                return True
        elif who in pods_ and matches(peer["podSelector"], labels(pods_[who])):
            return True
    return False


def tcp(resources: tuple[Resource, ...], direction: str, name: str, other: str) -> set[int]:
    """The ports at which the policies let the pod `name` be reached by `other` ("ingress"), or reach it ("egress")."""
    ours = pods(resources)
    return {
        entry["port"]
        for policy in of(resources, "NetworkPolicy")
        if matches(policy["spec"]["podSelector"], labels(ours[name]))
        for rule in policy["spec"].get(direction, [])
        if _admits(rule.get("from" if direction == "ingress" else "to"), other, ours)
        for entry in rule["ports"]
        if entry["protocol"] == "TCP"
    }


def test_all_traffic_is_denied_at_first(resources: tuple[Resource, ...]) -> None:
    assert named(resources, "NetworkPolicy", "default-deny")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    for policy in of(resources, "NetworkPolicy"):
        for direction in ("ingress", "egress"):
            assert (direction in policy["spec"]) <= (direction.title() in policy["spec"]["policyTypes"])
            assert all(rule.get("ports") for rule in policy["spec"].get(direction, []))


def test_pods_reach_each_other_exactly_where_they_must(resources: tuple[Resource, ...]) -> None:
    ours = pods(resources)
    reached = {
        (source, target, port)
        for source in ours
        for target in ours
        for port in ports(ours[target]).values()
        if port in tcp(resources, "egress", source, target) & tcp(resources, "ingress", target, source)
    }
    inside = {("gateway", "redis", 6379), ("processor", "redis", 6379)}
    assert reached == (inside if "redis" in ours else set())


def test_only_the_gateway_is_reached_from_outside(resources: tuple[Resource, ...]) -> None:
    ours = pods(resources)
    reached = {
        (who, target, port)
        for who in (ANYWHERE, "monitoring", "keda")
        for target in ours
        for port in ports(ours[target]).values()
        if port in tcp(resources, "ingress", target, who)
    }
    expected = {(who, "gateway", 8080) for who in (ANYWHERE, "monitoring", "keda")}
    if of(resources, "PodMonitor"):
        expected.add(("monitoring", "processor", 8081))
    if of(resources, "ScaledObject"):
        expected.add(("keda", "redis", 6379))
    assert reached == expected


def test_what_pods_reach_outside(resources: tuple[Resource, ...]) -> None:
    reached = {name: tcp(resources, "egress", name, ANYWHERE) for name in pods(resources)}
    names = {53, 5353}
    if "redis" in reached:
        assert reached.pop("redis") == set()
        assert reached.pop("make-password") == {443, 6443, 8443, 16443}
        assert reached == {"gateway": names, "processor": names}
    else:
        servers = {6379, 6380, 26379}
        assert reached == {"gateway": names | servers, "processor": names | servers}


# -- scaling and disruption


def test_a_drain_of_a_node_is_never_blocked(resources: tuple[Resource, ...]) -> None:
    budgets = of(resources, "PodDisruptionBudget")
    assert {budget["metadata"]["name"] for budget in budgets} == set(SERVICES)
    for budget in budgets:
        assert "minAvailable" not in budget["spec"], "with one replica it would block for ever"
        assert budget["spec"]["maxUnavailable"] not in (0, "0%")
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_who_scales_owns_the_number_of_replicas(resources: tuple[Resource, ...]) -> None:
    for scaler in of(resources, "HorizontalPodAutoscaler", "ScaledObject"):
        workload = named(resources, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in workload["spec"]
    assert named(resources, "HorizontalPodAutoscaler", "gateway")["spec"]["minReplicas"] >= 2


def test_a_rollout_takes_nothing_away_before_there_is_more(resources: tuple[Resource, ...]) -> None:
    for deployment in of(resources, "Deployment"):
        rolling = deployment["spec"]["strategy"]["rollingUpdate"]
        resources_ = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
        if "nvidia.com/gpu" in resources_["limits"]:
            assert rolling == {"maxSurge": 0, "maxUnavailable": 1}, "there may be no spare GPU"
        else:
            assert rolling == {"maxSurge": 1, "maxUnavailable": 0}


def test_keda_looks_at_our_queue() -> None:
    resources = rendered("k8s/overlays/keda")
    spec = named(resources, "ScaledObject", "processor")["spec"]
    defaults = ProcessorSettings.model_fields
    batch = defaults["max_batch_size"].default * defaults["model_processes"].default
    asked = [trigger["metadata"] for trigger in spec["triggers"]]
    lag, pending, length = asked
    assert {trigger["stream"] for trigger in asked} == {keys.jobs(0)}, "one set of triggers per partition"
    assert settings(resources)["PARTITIONS"] == "1"
    assert {trigger["address"] for trigger in asked} == {"redis.foretell.svc:6379"}
    assert {lag["consumerGroup"], pending["consumerGroup"]} == {keys.GROUP}
    assert int(lag["activationLagCount"]) == 0, "one that waits must be enough"
    assert int(pending["pendingEntriesCount"]) >= 2 * batch, (
        "a busy processor must not ask for another by being busy"
    )
    assert int(length["streamLength"]) == int(lag["lagCount"]) + int(pending["pendingEntriesCount"])
    assert spec["minReplicaCount"] == 0
    assert spec["cooldownPeriod"] > float(settings(resources)["PREDICT_TIMEOUT_S"])
    [authentication] = of(resources, "TriggerAuthentication")
    assert {trigger["authenticationRef"]["name"] for trigger in spec["triggers"]} == {
        authentication["metadata"]["name"]
    }
    for reference in authentication["spec"]["secretTargetRef"]:
        assert reference["key"] in SECRETS[reference["name"]]


def test_the_files_that_the_page_s_urls_name_are_mounted_in_both_services() -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    named_in_urls = dict(re.findall(r"\b(ssl_\w+)=(/etc/[\w./-]+)", page))
    assert named_in_urls.keys() == {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
    for option, path in named_in_urls.items():
        assert parse_url(f"rediss://host/0?ssl_certfile=x&{option}={path}").options[option] == path
    resources = rendered("k8s/overlays/private-ca")
    for name in SERVICES:
        pod = pods(resources)[name]
        [container] = containers(pod)
        folders = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        [files] = [volume for volume in pod["spec"]["volumes"] if "projected" in volume]
        sources = [source["secret"] for source in files["projected"]["sources"]]
        mounted = {
            f"{folders[files['name']]}/{item['path']}": not source.get("optional", False)
            for source in sources
            for item in source["items"]
        }
        assert mounted.keys() == set(named_in_urls.values())
        assert {path for path, needed in mounted.items() if needed} == {named_in_urls["ssl_ca_certs"]}


def test_the_ingress_lets_pass_what_the_gateway_takes() -> None:
    resources = rendered("k8s/overlays/ingress")
    [ingress] = of(resources, "Ingress")
    notes = {name.rpartition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()}
    assert float(notes["proxy-read-timeout"]) > 300, "?wait may hold an answer that long"
    assert int(notes["proxy-body-size"].removesuffix("m")) << 20 > int(settings(resources)["MAX_BODY_BYTES"])
    [rule] = ingress["spec"]["rules"]
    assert {path["path"] for path in rule["http"]["paths"]} == {"/predict", "/ws"}, "the rest stays inside"
    assert [rule["host"]] == ingress["spec"]["tls"][0]["hosts"]


def test_the_route_lets_pass_what_the_gateway_takes() -> None:
    [route] = of(rendered("k8s/overlays/gateway-api"), "HTTPRoute")
    timeouts = {}
    for rule in route["spec"]["rules"]:
        [match] = rule["matches"]
        assert match["path"]["type"] == "PathPrefix"
        timeouts[match["path"]["value"]] = rule["timeouts"]
    assert timeouts.keys() == {"/predict", "/ws"}, "the rest stays inside"
    assert float(timeouts["/predict"]["request"].removesuffix("s")) > 300, (
        "?wait may hold an answer that long"
    )
    assert timeouts["/ws"] == {"request": "0s"}, "a WebSocket may stay open for ever"


def test_an_overlay_says_which_gateway_and_host_a_route_has() -> None:
    [route] = of(rendered("k8s/overlays/gateway-api"), "HTTPRoute")
    [parent] = route["spec"]["parentRefs"]
    assert (parent["namespace"], parent["name"]) == ("gateways", "public")
    assert route["spec"]["hostnames"] == ["predict.example.com"]


# -- the server and its password


class ApiServer(BaseHTTPRequestHandler):
    """As much of the Kubernetes API as one POST of a Secret needs. Refuses the first call, as long as roles are on their
    way it does."""

    calls: ClassVar[int] = 0
    created: ClassVar[list[Resource]] = []

    def do_POST(self) -> None:
        kind = type(self)
        kind.calls += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/api/v1/namespaces/foretell/secrets"
        assert self.headers["Authorization"] == "Bearer the-token"
        if kind.calls == 1:
            code = 403
        elif kind.created:
            code = 409
        else:
            kind.created.append(body)
            code = 201
        self.send_response(code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def api_server(account: Path) -> Iterator[int]:
    """Its port; what a pod finds of its service account is in `account`."""
    subprocess.run(
        shlex.split(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=kubernetes "
            "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out ca.crt"
        ),
        cwd=account,
        check=True,
        capture_output=True,
    )
    (account / "token").write_text("the-token\n")
    (account / "namespace").write_text("foretell")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(account / "ca.crt", account / "key.pem")
    ApiServer.calls, ApiServer.created = 0, []
    with HTTPServer(("127.0.0.1", 0), ApiServer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
def test_the_pod_makes_a_password_that_the_server_and_its_clients_share(tmp_path: Path) -> None:
    def pod(port: int) -> str:
        environment = {
            "SERVICE_ACCOUNT": str(tmp_path),
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(port),
        }
        done = subprocess.run(
            [sys.executable, VALKEY / "make_password.py"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout

    with api_server(tmp_path) as port:
        first, second = pod(port), pod(port)
    assert "403" in first
    assert "created" in first
    assert "already" in second
    [secret] = ApiServer.created
    assert (secret["kind"], secret["metadata"]["name"]) == ("Secret", "redis")
    data = secret["stringData"]
    assert data.keys() == SECRETS["redis"]
    assert len(data["password"]) >= 32
    assert data["password"] not in first + second
    with server(tmp_path, data["valkey.conf"]) as port:
        url = data["url"].replace("@redis:6379", f"@127.0.0.1:{port}")
        with closing(Redis.from_url(url)) as client:
            assert client.ping()


@contextmanager
def server(folder: Path, password_conf: str) -> Iterator[int]:
    """A real server with the configuration of the component; only the folders are others, and the port."""
    (folder / "password.conf").write_text(password_conf)
    port = free_port()
    text = (VALKEY / "valkey.conf").read_text()
    for there, here in {
        "port 6379": f"port {port}",
        "dir /data": f"dir {folder}",
        "/etc/valkey-password/valkey.conf": str(folder / "password.conf"),
    }.items():
        assert text.count(there) == 1
        text = text.replace(there, here)
    (folder / "valkey.conf").write_text(text)
    with (folder / "server.log").open("wb") as log:
        process = start_child(
            [embedded_server.binary_of_the_wheel(), folder / "valkey.conf"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def up() -> bool:
        with closing(Redis(port=port, retry=Retry(NoBackoff(), 0))) as client:
            try:
                return bool(client.ping())
            except AuthenticationError:
                return True
            except RedisError:
                assert process.poll() is None, (folder / "server.log").read_text()
                return False

    try:
        wait_until(up)
        yield port
    finally:
        process.terminate()
        assert process.wait(30) == 0, ending(process.returncode)


def test_the_servers_configuration_keeps_what_foretell_promises(tmp_path: Path) -> None:
    with server(tmp_path, "requirepass secret\n") as port:
        with closing(Redis(port=port)) as client, pytest.raises(AuthenticationError):
            client.ping()
        with closing(Redis(port=port, password="secret", decode_responses=True)) as client:
            values = client.config_get("*")
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "hash-max-listpack-value": "1024",
    }
    assert {name: values[name] for name in expected} == expected
    pod = pods(rendered("k8s"))["redis"]
    [container] = containers(pod)
    gib = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
    assert 0 < int(values["maxmemory"]) < 0.7 * gib * (1 << 30), "rewriting the file needs the rest"
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/data", "/etc/valkey", "/etc/valkey-password"} == mounts, "what valkey.conf and the command name"
    assert container["command"][1] == "/etc/valkey/valkey.conf"


# -- the check itself


def good() -> Resource:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "gateway"},
        "spec": {"ports": [{"port": 8080}], "selector": {"a": "b"}},
    }


def test_the_check_finds_what_a_cluster_would_refuse_or_ignore() -> None:
    k8s_check.validate(good())
    for change, named_fault in (
        ({"spec": {"ports": [{"port": "http"}]}}, "port"),
        ({"spec": {"port": 8080}}, "port"),
        ({"kind": "Servce"}, "Servce"),
        ({"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget"}, "PodDisruptionBudget"),
        ({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject"}, "scaleTargetRef"),
    ):
        with pytest.raises(k8s_check.CheckFault, match=named_fault):
            k8s_check.validate(good() | change)


def test_the_check_finds_a_resource_that_is_there_twice() -> None:
    other = good() | {"metadata": {"name": "other"}}
    assert k8s_check.twice((good(), other)) == []
    assert k8s_check.twice((good(), other, good())) == ["Service gateway"]


def test_the_check_finds_a_scaled_object_that_keda_would_misread() -> None:
    for trigger in (
        {"lagCount": "5", "consumerGroup": "processors"},  # no activationLagCount
        {"lagCount": "5", "activationLagCount": "0"},  # no group: KEDA would take the length
        {"streamLength": "5", "consumerGroup": "processors"},  # a group: KEDA would take what is pending
        {"lagCounts": "5"},
    ):
        scaled = {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": "processor"},
            "spec": {
                "scaleTargetRef": {"name": "processor"},
                "triggers": [{"type": "redis-streams", "metadata": {"stream": "s", **trigger}}],
            },
        }
        with pytest.raises(k8s_check.CheckFault, match="triggers"):
            k8s_check.validate(scaled)


def test_the_check_reads_the_manifests_in_the_docs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text\n```yaml\napiVersion: v1\nkind: Pod\n---\nnot: one\n```\n```yaml\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n```\n```yaml\njust: settings\n```\n"
    )
    assert list(k8s_check.snippets(page)) == [{"apiVersion": "v1", "kind": "Pod"}]
