"""The files below deploy/, checked by the programs that read them.

No container engine runs: the image is linted, not built; manifests are rendered, not applied.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx2
import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose
from support.clients import need
from support.engines import free_port
from support.world import (
    PATIENCE,
    Gateway,
    environ,
    http,
    running_upstream,
)

from bff.config import reader
from bff.config.settings import SETTINGS
from bff.metrics import METRICS

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES_VERSION = "1.34"

FAMILIES = {
    name + suffix
    for name, metric in METRICS.items()
    for suffix in {"counter": ["_total"], "gauge": [""]}.get(
        metric.kind, ["_bucket", "_count", "_sum"]
    )
} | {"process_resident_memory_bytes", "process_cpu_seconds_total"}


def tool(name: str) -> str:
    """Find a program in the virtual environment, or on the system if no wheel has it."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or need(name)


def run(*command: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": "/usr/sbin:/usr/bin:/bin", "HOME": "/nonexistent"} | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# -- the image


def test_dockerfile_passes_the_linter() -> None:
    done = run(tool("hadolint"), "deploy/Dockerfile")

    assert done.returncode == 0, done.stdout


def test_image_is_pinned_unprivileged_and_without_pip() -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    build, last = text.split("\nFROM ")[1:]

    assert re.findall(r"^ARG PYTHON=(.+)$", text, re.MULTILINE)[0].count(".") == 2
    assert (build.splitlines()[0], last.splitlines()[0]) == ("${PYTHON} AS build", "${PYTHON}")
    assert "--require-hashes" in build
    assert re.search(r"pip uninstall --yes flit_core pip$", build, re.MULTILINE)
    (command,) = re.findall(r"^RUN (.+)$", last, re.MULTILINE)
    for removed in ("site-packages/*", "/ensurepip", "/usr/local/bin/pip*"):
        assert removed in command.partition("&&")[0]
    assert "install" not in command
    assert re.findall(r"^COPY (.+)$", last, re.MULTILINE) == ["--from=build /opt/bff /opt/bff"]
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^STOPSIGNAL (.+)$", last, re.MULTILINE) == ["SIGTERM"]
    assert health_check() == compose()["services"]["gateway-1"]["healthcheck"]["test"][1:]
    # The exec form: a shell would not pass SIGTERM on to the process.
    assert re.findall(r"^ENTRYPOINT (.+)$", last, re.MULTILINE) == ['["bff"]']


def health_check() -> list[str]:
    """The words of the image's health check."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^HEALTHCHECK .+ CMD (\[.+\])$", text, re.MULTILINE)
    words: list[str] = json.loads(command)
    return words


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"BFF_OPS_HOST": "0.0.0.0"},  # noqa: S104  as in a container
        {"BFF_OPS_HOST": "::"},
        {"BFF_OPS_HOST": "::1"},
    ],
    ids=repr,
)
def test_health_check_finds_the_ops_port(
    upstream: running_upstream, changes: dict[str, str]
) -> None:
    words = [sys.executable, *health_check()[1:]]
    nowhere = {"http_proxy": "http://127.0.0.1:1", "all_proxy": "http://127.0.0.1:1"}
    port = str(free_port())
    with Gateway(upstream.port, BFF_OPS_PORT=port, **changes):
        variables = {"BFF_OPS_PORT": port} | changes | nowhere
        assert run(*words, cwd=ROOT, **variables).returncode == 0
    done = run(*words, cwd=ROOT, **variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr


def test_dockerignore_admits_exactly_the_copied_files() -> None:
    copied = re.findall(
        r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE
    )
    ignored = (ROOT / ".dockerignore").read_text().splitlines()

    admitted = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert {name for names in copied for name in names.split()} == admitted
    assert "*" in ignored
    for name in admitted:
        assert (ROOT / name).exists()


# -- compose


def compose() -> dict[str, Any]:
    text = (ROOT / "docker-compose.yml").read_text()
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def test_compose_file_follows_the_specification() -> None:
    # Compose substitutes variables before it checks types.
    merged = yaml.safe_dump({k: v for k, v in compose().items() if not k.startswith("x-")})
    text = re.sub(r"\$\{\w+:?[-?]?([^}]*)\}", r"\1", merged)

    assert "gateway-1" in PyCompose.from_yaml(text).service_names()
    with pytest.raises(ValueError, match=r"."):
        PyCompose.from_yaml(text.replace("mem_limit: 384m", "mem_limit: [much]"))


def test_services_are_hardened_and_have_health_checks() -> None:
    services = compose()["services"]
    init = services.pop("caddy-volumes")  # runs once, as root, on Caddy's volumes only
    assert (init["network_mode"], init["cap_drop"], init["cap_add"]) == ("none", ["ALL"], ["CHOWN"])
    assert {volume.partition(":")[0] for volume in init["volumes"]} == {
        "caddy-data",
        "caddy-config",
    }
    for name, service in services.items():
        assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else [])
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].partition(":")[0] not in ("0", "root"), name
        assert service["mem_limit"], name
        assert service["healthcheck"]["test"], name
        assert "privileged" not in service, name
        if "build" not in service:
            assert re.fullmatch(r".+:v?\d+\.\d+\.\d+.*", service["image"]), name


def test_store_is_volatile_and_only_gateways_reach_it() -> None:
    document = compose()
    store = document["services"]["valkey"]
    options = dict(zip(store["command"][1::2], store["command"][2::2], strict=True))

    assert options == {
        "--aclfile": "/run/secrets/store_users",
        "--save": "",
        "--appendonly": "no",
        "--maxmemory": "128mb",
        "--maxmemory-policy": "noeviction",
    }
    assert document["networks"]["store"]["internal"] is True
    members = {n for n, s in document["services"].items() if "store" in s.get("networks", [])}
    assert members == {"valkey", "gateway-1", "gateway-2"}
    assert store["networks"] == ["store"]
    assert "volumes" not in store


def test_make_secrets_writes_what_compose_needs_once(tmp_path: Path) -> None:
    made = tmp_path / "secrets"
    script = str(DEPLOY / "make-secrets")
    assert run(script, str(made)).returncode != 0, "TRIGGER_SECRET_KEY is not set"
    assert run(script, str(made), TRIGGER_SECRET_KEY="tr_dev_sk_SENTINEL").returncode == 0
    texts = {path.name: path.read_text() for path in made.iterdir()}
    done = run(script, str(made))

    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in made.iterdir()} == texts
    assert {f"./secrets/{name}" for name in texts} == {
        secret["file"] for secret in compose()["secrets"].values()
    }
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    # The owner, who need not be root, rotates a key by writing to its file.
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()} == {0o644}
    assert texts["trigger_secret_key"] == "tr_dev_sk_SENTINEL\n"
    assert len(set(texts.values())) == len(texts)
    settings = reader.load(
        {
            f"{name}_FILE": str(made / file)
            for name, file in {
                "TRIGGER_SECRET_KEY": "trigger_secret_key",
                "BFF_SIGNING_KEYS": "signing_keys",
                "BFF_STORE_URL": "store_url",
            }.items()
        }
    )
    assert settings.store_url is not None
    assert all(text not in done.stdout for text in texts.values())


def test_store_user_may_run_the_documented_commands_only() -> None:
    """`tests/topology` shows that the commands suffice."""
    fleet = (ROOT / "docs/FLEET.md").read_text()
    (sentence,) = re.findall(
        r"The gateway needs the commands (.+?), on keys `bff1:\*`", fleet, re.DOTALL
    )
    documented = {
        word.lower() for words in re.findall(r"`(.+?)`", sentence) for word in words.split()
    }
    (line,) = re.findall(r"^user gateway .*$", (DEPLOY / "make-secrets").read_text(), re.MULTILINE)

    assert set(re.findall(r"\+(\w+)", line)) == documented
    assert "-@all" in line
    assert re.findall(r"~\S+", line) == ["~bff1:*"]


def test_secrets_are_files_and_gateways_publish_no_port() -> None:
    services = compose()["services"]
    published = {name for name, service in services.items() if "ports" in service}
    assert published == {"caddy", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in services["grafana"]["ports"])
    for name in ("gateway-1", "gateway-2"):
        variables = services[name]["environment"]
        secrets = {n for n, row in SETTINGS.items() if row.secret}
        assert not secrets & set(variables)
        assert {n.removesuffix("_FILE") for n in variables} <= set(SETTINGS)
        assert services[name]["env_file"] == [{"path": "bff.env", "required": False}]
        assert name in variables["BFF_OPS_NAMES"].split(","), "the ops port refuses Prometheus"
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_settings_of_compose_are_a_file_of_their_own() -> None:
    """The file that is copied sets no more than compose leaves open, and settings that exist."""
    text = (DEPLOY / "bff.env.example").read_text()
    named = set(re.findall(r"^#?([A-Z][A-Z_]+)=", text, re.MULTILINE))

    assert named <= {name for name, row in SETTINGS.items() if not row.secret}
    assert not named & set(compose()["services"]["gateway-1"]["environment"])
    assert "bff.env" in (ROOT / ".gitignore").read_text().splitlines()
    reader.load(environ(**dict(re.findall(r"^([A-Z_]+)=(.+)$", text, re.MULTILINE))))


def test_front_network_is_in_no_clouds_default_range() -> None:
    (subnet,) = {
        re.sub(r"\$\{FRONT_SUBNET:-(.+)\}", r"\1", text)
        for text in (
            compose()["networks"]["front"]["ipam"]["config"][0]["subnet"],
            compose()["services"]["gateway-1"]["environment"]["BFF_TRUSTED_PROXIES"],
        )
    }
    # AWS, Google and Azure with their defaults, and Docker's first pool.
    for taken in ("172.31.0.0/16", "10.0.0.0/8", "172.17.0.0/12"):
        assert not ip_network(subnet).overlaps(ip_network(taken, strict=False))


# -- Caddy


def test_caddyfile_is_valid_and_formatted() -> None:
    caddy = tool("caddy")
    done = run(caddy, "validate", "--adapter", "caddyfile", "--config", "deploy/Caddyfile")

    assert done.returncode == 0, done.stderr
    assert run(caddy, "fmt", "--diff", "deploy/Caddyfile").returncode == 0


# -- Prometheus and Grafana


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def test_alerts_fire_exactly_when_they_should() -> None:
    promtool = tool("promtool")
    for arguments in (("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")):
        done = run(promtool, *arguments, cwd=DEPLOY / "prometheus")
        assert done.returncode == 0, done.stdout + done.stderr
    done = run(promtool, "check", "config", "prometheus.yml", cwd=DEPLOY / "prometheus")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_has_a_runbook() -> None:
    tested = (DEPLOY / "prometheus/rules_test.yml").read_text()
    operations = (ROOT / "docs/OPERATIONS.md").read_text()
    headings = re.findall(r"^### (\w+)$", operations, re.MULTILINE)
    alerts = [rule["alert"] for rule in rules()]

    assert sorted(h for h in headings if h.startswith("Bff")) == sorted(alerts)
    for rule in rules():
        assert f'alertname="{rule["alert"]}"' in tested
        assert rule["annotations"]["runbook"].endswith(f"OPERATIONS.md#{rule['alert'].lower()}")


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    return document


def test_rules_and_dashboard_use_existing_metrics() -> None:
    expressions = [t["expr"] for panel in dashboard()["panels"] for t in panel.get("targets", ())]
    shown = {name for e in expressions for name in re.findall(r"\b(?:bff|process)_\w+", e)}
    expressions += [rule["expr"] for rule in rules()]

    used = {name for e in expressions for name in re.findall(r"\b(?:bff|process)_\w+", e)}
    assert used <= FAMILIES, used - FAMILIES
    labels = {label for metric in METRICS.values() for label in metric.labels}
    labels |= {"instance", "le", "job", "worker"}
    for text in expressions:
        for group in re.findall(r"(?:by|on) ?\(([^)]*)\)", text):
            assert {name.strip() for name in group.split(",")} <= labels, text
        for selector in re.findall(r"\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)(?:=|!=|=~)\"", selector)) <= labels, text
    shown |= {"bff_worker_up", "bff_log_lines_dropped_total"}  # an alert's, and a log reader's
    for name in METRICS:
        family = {f for f in FAMILIES if f == name or f.startswith(f"{name}_")}
        assert family & shown, f"no panel shows {name}"


def test_dashboard_has_a_layout_that_grafana_accepts() -> None:
    """Checks the documented dashboard model; no Grafana runs."""
    document = dashboard()
    panels = document["panels"]
    variables = {variable["name"] for variable in document["templating"]["list"]}

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["type"] for panel in panels} == {"row", "stat", "timeseries"}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(0 <= x < 24 for x, _ in cells), panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            assert used <= variables | {"__rate_interval"}
            assert target["datasource"]["uid"] == "${datasource}"
            # A legend may name the labels that the query keeps.
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
                kept = {"instance", "worker"} if not grouped else set(re.split(r", ", grouped[0]))
                assert label in kept, target["expr"]
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs)
    provisioned = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )
    assert [one["type"] for one in provisioned["datasources"]] == ["prometheus"]


# -- Kubernetes


@cache
def render(overlay: str) -> str:
    done = run(tool("kubectl"), "kustomize", f"deploy/kubernetes/overlays/{overlay}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(overlay: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(render(overlay)))


OVERLAYS = sorted(path.name for path in (DEPLOY / "kubernetes/overlays").iterdir())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_match_the_api_schemas(overlay: str) -> None:
    for manifest in rendered(overlay):
        if manifest["kind"] == "ServiceMonitor":  # no schema is available
            assert set(manifest["spec"]) == {"endpoints", "jobLabel", "selector"}
            continue
        if manifest["kind"] == "PrometheusRule":
            assert set(manifest["spec"]) == {"groups"}
            continue
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def test_misspelt_manifest_is_rejected() -> None:
    (deployment,) = (m for m in rendered("small") if m["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES_VERSION, strict=True)


def named(overlay: str, kind: str, name: str = "bff") -> dict[str, Any]:
    (manifest,) = (
        m for m in rendered(overlay) if (m["kind"], m["metadata"]["name"]) == (kind, name)
    )
    return manifest


def gateway_settings(overlay: str) -> dict[str, Any]:
    (found,) = (
        m
        for m in rendered(overlay)
        if m["kind"] == "ConfigMap" and m["metadata"]["name"] != "bff-dashboard"
    )
    return found


def assert_hardened(template: dict[str, Any]) -> None:
    (container,) = template["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert template["spec"]["automountServiceAccountToken"] is False
    assert {"livenessProbe", "readinessProbe"} <= set(container)
    assert container["resources"]["limits"]["memory"]
    assert ":" in container["image"].rpartition("/")[2]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_hardened_and_use_existing_settings(overlay: str) -> None:
    for manifest in rendered(overlay):
        if manifest["kind"] == "Deployment":
            assert_hardened(manifest["spec"]["template"])
    template = named(overlay, "Deployment")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    settings_map = gateway_settings(overlay)

    assert "startupProbe" in container
    (source,) = container["envFrom"]
    assert source["configMapRef"]["name"] == settings_map["metadata"]["name"]
    assert {name.removesuffix("_FILE") for name in settings_map["data"]} <= set(SETTINGS)
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = named(overlay, kind)["spec"]
        selector = (spec.get("selector") or spec["podSelector"])["matchLabels"]
        assert selector.items() <= template["metadata"]["labels"].items()
    for name in ("bff", "bff-ops"):
        selector = named(overlay, "Service", name)["spec"]["selector"]
        assert selector.items() <= template["metadata"]["labels"].items()
    ports = named(overlay, "Service")["spec"]["ports"]
    assert {port["targetPort"] for port in ports} == {"http"}


def test_production_store_is_reached_by_gateways_only() -> None:
    variables = gateway_settings("production")["data"]
    store = named("production", "Deployment", "bff-store")["spec"]
    gateway = named("production", "Deployment")["spec"]["template"]["metadata"]["labels"]
    labels = store["template"]["metadata"]["labels"]
    (container,) = store["template"]["spec"]["containers"]

    assert variables["BFF_STORE_URL_FILE"] == "/run/secrets/bff/store_url"
    assert not named("production", "Service", "bff")["spec"]["selector"].items() <= labels.items()
    assert named("production", "Service", "bff-store")["spec"]["selector"].items() <= labels.items()
    # The same as in compose, except for the path of the secret.
    words = [w.replace("/bff-store/", "/") for w in container["args"]]
    assert words == compose()["services"]["valkey"]["command"]
    assert container["image"] == compose()["services"]["valkey"]["image"]
    policy = named("production", "NetworkPolicy", "bff-store")["spec"]
    ((source,),) = (rule["from"] for rule in policy["ingress"])
    assert source["podSelector"]["matchLabels"].items() <= gateway.items()
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert (policy["policyTypes"], policy.get("egress")) == (["Ingress", "Egress"], None)
    out = named("production", "NetworkPolicy")["spec"]["egress"]
    assert {"port": 6379, "protocol": "TCP"} in [p for rule in out for p in rule["ports"]]


def test_readiness_probe_waits_for_no_upstream() -> None:
    (container,) = named("small", "Deployment")["spec"]["template"]["spec"]["containers"]

    assert container["readinessProbe"]["timeoutSeconds"] <= 3
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_autoscaler_adds_a_replica_where_the_page_says() -> None:
    (metric,) = named("production", "HorizontalPodAutoscaler")["spec"]["metrics"]
    (page,) = re.findall(
        r"`process_cpu_seconds_total` of the busiest grows by more than ([\d.]+) a second",
        (ROOT / "docs/OPERATIONS.md").read_text(),
    )

    assert metric["resource"]["target"] == {
        "type": "AverageValue",
        "averageValue": f"{float(page) * 1000:.0f}m",
    }


def test_routes_lead_to_the_browser_port_only() -> None:
    (rule,) = named("production", "Ingress")["spec"]["rules"]
    paths = rule["http"]["paths"]
    route = yaml.safe_load((DEPLOY / "kubernetes/components/httproute/httproute.yaml").read_text())[
        "spec"
    ]["rules"][0]
    service = named("production", "Service")
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}

    routes = ["/api/v1/sessions", "/realtime/v1/sessions"]
    assert [path["path"] for path in paths] == routes
    assert [match["path"]["value"] for match in route["matches"]] == routes
    assert all(
        path["backend"]["service"] == {"name": "bff", "port": {"name": "http"}} for path in paths
    )
    assert route["backendRefs"] == [{"name": "bff", "port": ports["http"]}]


def test_alerts_and_dashboard_are_in_the_cluster() -> None:
    rule = named("production", "PrometheusRule")["spec"]
    dashboard_map = named("production", "ConfigMap", "bff-dashboard")

    assert rule["groups"][0]["rules"] == rules()
    assert json.loads(dashboard_map["data"]["bff.json"]) == dashboard()
    assert dashboard_map["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_production_scales_and_is_scraped() -> None:
    assert "replicas" not in named("production", "Deployment")["spec"]
    assert named("production", "HorizontalPodAutoscaler")["spec"]["minReplicas"] >= 2
    labels = named("production", "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    ops = named("production", "Service", "bff-ops")
    assert labels.items() <= ops["metadata"]["labels"].items()


# -- systemd


def test_units_are_valid_and_hardened(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    for path in (DEPLOY / "systemd").rglob("*"):
        if path.suffix in (".service", ".socket", ".conf"):
            # systemd-analyze needs an existing program.
            text = path.read_text().replace("/opt/bff/bin/bff", "/bin/true")
            copy = tmp_path / path.relative_to(DEPLOY / "systemd")
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(text)
    units = [str(path) for path in sorted(tmp_path.iterdir()) if path.is_file()]
    assert len(units) == 3

    done = run(analyze, "verify", "--man=no", *units, SYSTEMD_UNIT_PATH=f"{tmp_path}:")
    warnings = [line for line in done.stderr.splitlines() if "bff" in line]
    assert not warnings, done.stderr
    assert done.returncode == 0, done.stderr

    done = run(
        analyze, "security", "--offline=true", "--threshold=20", str(tmp_path / "bff.service")
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_unit_tries_again_for_ever() -> None:
    text = (DEPLOY / "systemd/bff.service").read_text()

    assert "\nStartLimitIntervalSec=0\n" in text.partition("[Service]")[0]
    assert float(re.findall(r"^RestartSec=(.+)$", text, re.MULTILINE)[0]) >= 5
    assert "\nRestart=on-failure\n" in text


def test_unit_says_how_to_install_it_from_the_repository() -> None:
    lines = re.findall(r"^#   (.+)$", (DEPLOY / "systemd/bff.service").read_text(), re.MULTILINE)
    named = {word for line in lines for word in re.findall(r"(?<![/\w])[a-z]+/[\w./-]+", line)}
    units = [path for path in named if path.endswith((".service", ".socket"))]

    assert sorted(units) == [
        f"deploy/systemd/{u}" for u in ("bff-ops.socket", "bff.service", "bff.socket")
    ]
    assert all((ROOT / path).is_file() for path in named), named
    assert lines.index("systemctl daemon-reload") == len(lines) - 2


def test_key_that_the_unit_makes_is_not_lost() -> None:
    text = (DEPLOY / "systemd/bff.service").read_text()

    (line,) = re.findall(r"^#   (openssl rand .+)$", text, re.MULTILINE)
    assert "|" not in line
    assert re.search(r"systemd-creds encrypt --name=signing_keys signing_key ", text)


def test_process_metrics_exist_in_the_units_view_of_proc() -> None:
    """systemd makes this view with the mount options that the unit's settings stand for."""
    text = (DEPLOY / "systemd/bff.service").read_text()
    options = {
        "hidepid": re.findall(r"^ProtectProc=(\w+)$", text, re.MULTILINE),
        "subset": re.findall(r"^ProcSubset=(\w+)$", text, re.MULTILINE),
    }
    mount = ",".join(f"{name}={values[0]}" for name, values in options.items() if values)
    code = (
        "import io; from bff.telemetry import Telemetry\n"
        "print(Telemetry(io.StringIO()).metrics().decode())"
    )
    done = run(
        *("unshare", "--mount", "--pid", "--fork", "sh", "-c"),
        f'mount -t proc -o {mount} proc /proc && exec "$0" -c "$1"',
        *(sys.executable, code),
    )
    if "not permitted" in done.stderr:
        pytest.skip("the machine does not let this user make namespaces")

    assert done.returncode == 0, done.stderr
    for name in ("resident_memory_bytes", "cpu_seconds_total", "start_time_seconds", "open_fds"):
        assert re.search(rf"^process_{name} [\d.]", done.stdout, re.MULTILINE), name


def test_units_set_existing_settings_and_use_credentials() -> None:
    folder = DEPLOY / "systemd"
    named = re.findall(r"^(\w+)=", (folder / "bff.env").read_text(), re.MULTILINE)
    assert named
    assert set(named) <= {name for name, row in SETTINGS.items() if not row.secret}
    for path in (folder / "bff.service", folder / "bff.service.d/store.conf"):
        text = path.read_text()
        variables = dict(re.findall(r"^Environment=(\w+)=%d/(\w+)$", text, re.MULTILINE))
        credentials = re.findall(
            r"^LoadCredentialEncrypted=(\w+):/etc/bff/\1.cred$", text, re.MULTILINE
        )
        assert sorted(variables.values()) == sorted(credentials)
        assert {name.removesuffix("_FILE") for name in variables} <= set(SETTINGS)


def test_serve_takes_over_the_sockets_of_systemd(upstream: running_upstream) -> None:
    """Uses systemd's own program, with the socket names of the units."""
    names = [
        re.findall(r"^FileDescriptorName=(\w+)$", path.read_text(), re.MULTILINE)[0]
        for path in sorted((DEPLOY / "systemd").glob("*.socket"), reverse=True)
    ]
    ports = [free_port(), free_port()]
    command = [tool("systemd-socket-activate"), f"--fdname={':'.join(names)}"]
    command += [f"--listen=127.0.0.1:{port}" for port in ports]
    variables = environ(TRIGGER_API_URL=f"http://127.0.0.1:{upstream.port}")
    for name in variables:
        command.append(f"--setenv={name}")
    process = subprocess.Popen(
        [*command, sys.executable, "-m", "bff", "serve"],
        env={"PATH": os.environ["PATH"]} | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert names == ["browser", "ops"]
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                response = http.get(f"http://127.0.0.1:{ports[0]}/healthz")
                break
            except httpx2.TransportError:
                assert time.monotonic() < ends
                time.sleep(0.05)
        assert response.status_code == 200
        assert "bff_requests" in http.get(f"http://127.0.0.1:{ports[1]}/metrics").text
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE) in (0, -signal.SIGTERM)
