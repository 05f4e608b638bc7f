"""What is shipped for running it, checked by the programs that will read it.

No container engine takes part: images are linted, not built; manifests rendered, not applied.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from bff.settings import SETTINGS
from bff.telemetry import METRICS

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES_VERSION = "1.34"

FAMILIES = {
    name + suffix
    for name, row in METRICS.items()
    for suffix in {"counter": ["_total"], "gauge": [""]}.get(
        row.kind, ["_bucket", "_count", "_sum"]
    )
} | {"process_resident_memory_bytes"}


def tool(name: str) -> str:
    """A program of the development environment, or of the system where no wheel has it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (promtool: apt-get install prometheus)")
    return found


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


def test_the_dockerfile_has_nothing_that_a_linter_minds() -> None:
    done = run(tool("hadolint"), "deploy/Dockerfile")

    assert done.returncode == 0, done.stdout


def test_what_the_dockerfile_copies_is_let_in_and_nothing_else() -> None:
    copied = re.findall(
        r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE
    )
    ignored = (ROOT / ".dockerignore").read_text().splitlines()

    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert {name for names in copied for name in names.split()} == let_in
    assert "*" in ignored
    for name in let_in:
        assert (ROOT / name).exists()


# -- compose


def compose() -> dict[str, Any]:
    text = (ROOT / "docker-compose.yml").read_text()
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_compose_is_what_the_specification_says() -> None:
    # Substituted first, as Compose does before it reads types.
    merged = yaml.safe_dump({k: v for k, v in compose().items() if not k.startswith("x-")})
    text = re.sub(r"\$\{\w+:?[-?]?([^}]*)\}", r"\1", merged)

    assert "gateway-1" in PyCompose.from_yaml(text).service_names()
    with pytest.raises(ValueError, match=r"."):
        PyCompose.from_yaml(text.replace("mem_limit: 256m", "mem_limit: [much]"))


def test_every_service_is_hardened_and_watched() -> None:
    services = compose()["services"]
    once = services.pop(
        "caddy-volumes"
    )  # runs before the others, as root, and touches nothing else
    assert (once["network_mode"], once["cap_drop"], once["cap_add"]) == ("none", ["ALL"], ["CHOWN"])
    assert {volume.partition(":")[0] for volume in once["volumes"]} == {
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


def test_secrets_are_files_and_nothing_of_ours_is_published_but_by_caddy() -> None:
    found = compose()
    published = {name for name, service in found["services"].items() if "ports" in service}
    assert published == {"caddy", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in found["services"]["grafana"]["ports"])
    for name in ("gateway-1", "gateway-2"):
        told = found["services"][name]["environment"]
        secrets = {n for n, row in SETTINGS.items() if row.secret}
        assert not secrets & set(told)
        assert {n.removesuffix("_FILE") for n in told} <= set(SETTINGS)
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()


# -- Caddy


def test_caddy_takes_its_file() -> None:
    caddy = tool("caddy")
    done = run(caddy, "validate", "--adapter", "caddyfile", "--config", "deploy/Caddyfile")

    assert done.returncode == 0, done.stderr
    assert run(caddy, "fmt", "--diff", "deploy/Caddyfile").returncode == 0


# -- Prometheus and Grafana


def rules() -> list[dict[str, Any]]:
    found = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
    return [rule for group in found["groups"] for rule in group["rules"]]


def test_alerts_fire_when_they_should_and_only_then() -> None:
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


def test_rules_and_dashboard_ask_for_metrics_that_exist() -> None:
    dashboard = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for rule in rules()]

    asked = {name for e in expressions for name in re.findall(r"\b(?:bff|process)_\w+", e)}
    assert asked <= FAMILIES, asked - FAMILIES
    labels = {label for row in METRICS.values() for label in row.labels} | {"instance", "le", "job"}
    for text in expressions:
        for group in re.findall(r"(?:by|on) ?\(([^)]*)\)", text):
            assert {name.strip() for name in group.split(",")} <= labels, text


# -- Kubernetes


def rendered(overlay: str) -> list[dict[str, Any]]:
    done = run(tool("kubectl"), "kustomize", f"deploy/kubernetes/overlays/{overlay}")
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


OVERLAYS = sorted(path.name for path in (DEPLOY / "kubernetes/overlays").iterdir())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_what_the_api_accepts(overlay: str) -> None:
    for manifest in rendered(overlay):
        if manifest["kind"] == "ServiceMonitor":  # the operator's, whose schema is not at hand
            assert set(manifest["spec"]) == {"endpoints", "jobLabel", "selector"}
            continue
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def test_a_misspelt_manifest_would_be_found() -> None:
    (deployment,) = (m for m in rendered("small") if m["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_hardened_and_probed_and_know_their_settings(overlay: str) -> None:
    manifests = {m["kind"]: m for m in rendered(overlay) if m["kind"] != "Service"}
    services = {m["metadata"]["name"]: m for m in rendered(overlay) if m["kind"] == "Service"}
    template = manifests["Deployment"]["spec"]["template"]
    (container,) = template["spec"]["containers"]

    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert {"livenessProbe", "readinessProbe", "startupProbe"} <= set(container)
    assert container["resources"]["limits"]["memory"]
    assert ":" in container["image"].rpartition("/")[2]
    (source,) = container["envFrom"]
    assert source["configMapRef"]["name"] == manifests["ConfigMap"]["metadata"]["name"]
    told = {name.removesuffix("_FILE") for name in manifests["ConfigMap"]["data"]}
    assert told <= set(SETTINGS)
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = manifests[kind]["spec"]
        selector = (spec.get("selector") or spec["podSelector"])["matchLabels"]
        assert selector.items() <= template["metadata"]["labels"].items()
    for service in services.values():
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert {port["targetPort"] for port in services["bff"]["spec"]["ports"]} == {"http"}


def test_production_scales_and_is_scraped() -> None:
    manifests = {m["kind"]: m for m in rendered("production")}

    assert "replicas" not in manifests["Deployment"]["spec"]
    assert manifests["HorizontalPodAutoscaler"]["spec"]["minReplicas"] >= 2
    (ops,) = (
        m
        for m in rendered("production")
        if m["kind"] == "Service" and m["metadata"]["name"] == "bff-ops"
    )
    wanted = manifests["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= ops["metadata"]["labels"].items()


# -- systemd


def test_the_units_are_valid_and_hardened(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    for path in (DEPLOY / "systemd").iterdir():
        # Where it will be installed there is a program; here any stands for it.
        text = path.read_text().replace("/opt/bff/bin/bff", "/bin/true")
        (tmp_path / path.name).write_text(text)
    units = [str(path) for path in sorted(tmp_path.iterdir())]

    done = run(analyze, "verify", "--man=no", *units)
    ours = [line for line in done.stderr.splitlines() if "bff" in line]
    assert not ours, done.stderr
    assert done.returncode == 0, done.stderr

    done = run(
        analyze, "security", "--offline=true", "--threshold=20", str(tmp_path / "bff.service")
    )
    assert done.returncode == 0, done.stdout + done.stderr
