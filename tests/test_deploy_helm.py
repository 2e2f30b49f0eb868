"""The Helm chart through Helm's own library: linted, rendered, and checked against Kubernetes' schemas, strictly."""

from pathlib import Path

import pytest
import yaml

from service.auth import Keys

helm = pytest.importorskip("helm_python", reason="needs helm-python-sdk, Helm's own library as a wheel")
kubernetes = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "deltaspot"
CASES = {"default": {}} | {p.stem: yaml.safe_load(p.read_text()) for p in sorted((CHART / "ci").glob("*.yaml"))}
CUSTOM = {"ServiceMonitor", "ScaledObject"}
"""Kinds that operators bring, not Kubernetes."""

oldest_and_newest = pytest.mark.parametrize("version", ["1.25.0", kubernetes.latest_version()])
every_case = pytest.mark.parametrize("case", CASES)


def render(values):
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values=values, name="words", namespace="speech")
    manifests = [m for name, text in files.items() if name.endswith(".yaml") for m in yaml.safe_load_all(text) if m]
    return {manifest["kind"]: manifest for manifest in manifests}


@every_case
def test_helm_finds_nothing_to_complain_about(case):
    report = helm.lint(CHART, CASES[case], strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


@oldest_and_newest
@every_case
def test_manifests_are_what_kubernetes_takes(case, version):
    for kind, manifest in render(CASES[case]).items():
        if kind not in CUSTOM:
            kubernetes.validate(manifest, version, strict=True)


def test_a_wrong_manifest_would_be_found():
    manifest = render({})["Deployment"]
    manifest["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(manifest, "1.30.0", strict=True)


def test_cases_together_render_every_template():
    kinds = {kind for values in CASES.values() for kind in render(values)}
    assert kinds == {
        "Deployment",
        "HorizontalPodAutoscaler",
        "Ingress",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ScaledObject",
        "Secret",
        "Service",
        "ServiceMonitor",
    }
    assert len(kinds) == len(list((CHART / "templates").glob("*.yaml")))


@every_case
def test_selectors_meet_the_pods(case):
    manifests = render(CASES[case])
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        manifests["Deployment"]["spec"]["selector"]["matchLabels"],
        manifests["Service"]["spec"]["selector"],
        *(m["spec"]["selector"]["matchLabels"] for k, m in manifests.items() if k == "PodDisruptionBudget"),
        *(m["spec"]["podSelector"]["matchLabels"] for k, m in manifests.items() if k == "NetworkPolicy"),
    ]
    assert all(selector.items() <= labels for selector in selectors)


@every_case
def test_pods_get_time_to_drain_and_no_rights(case):
    pod = render(CASES[case])["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    drain = next(int(e["value"]) for e in container["env"] if e["name"] == "DELTASPOT_DRAIN_S")
    assert pod["terminationGracePeriodSeconds"] > drain + int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_user_of_the_pod_may_read_the_keys():
    pod = render({"keys": {"existingSecret": "words-keys"}})["Deployment"]["spec"]["template"]["spec"]
    (mode,) = (volume["secret"]["defaultMode"] for volume in pod["volumes"] if "secret" in volume)
    assert mode == 0o440
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"], "kubelet's files are root:fsGroup"


@every_case
def test_environment_is_what_the_server_knows(case):
    from service.settings import Settings

    pod = render(CASES[case])["Deployment"]["spec"]["template"]["spec"]
    env = {variable["name"] for variable in pod["containers"][0]["env"]}
    assert pod["enableServiceLinks"] is False, "Kubernetes would add DELTASPOT_PORT, if a service has our name"
    known = {f"DELTASPOT_{name.upper()}" for name in Settings.model_fields}
    assert env <= known


def test_whole_numbers_reach_the_server_whole():
    from service.settings import Settings

    asked = {"clip_bytes": 67_108_864, "self_check_share": 0.25, "origins": '["https://app.example.org"]'}
    (container,) = render({"settings": asked})["Deployment"]["spec"]["template"]["spec"]["containers"]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    given = {name: env[f"DELTASPOT_{name.upper()}"] for name in asked}
    assert given == {name: str(value) for name, value in asked.items()}
    assert Settings(clip_bytes=given["clip_bytes"]).clip_bytes == asked["clip_bytes"]
    year = render({"ingress": {"enabled": True, "timeoutSeconds": 31_536_000}})["Ingress"]["metadata"]["annotations"]
    assert year["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "31536000"


def test_other_keys_start_other_pods():
    def annotations(**keys):
        manifests = render({"keys": keys, "podAnnotations": {"example.org/team": "speech"}})
        return manifests["Deployment"]["spec"]["template"]["metadata"]["annotations"]

    assert annotations(text="a")["example.org/team"] == "speech"
    assert annotations(text="a") == annotations(text="a")
    assert annotations(text="a") != annotations(text="b")
    assert annotations(text="a") != annotations(text="a", ticketSecret="c")


def test_the_network_policy_lets_in_who_scrapes_and_traces_out():
    values = CASES["internet-values"]
    assert values["serviceMonitor"]["enabled"]
    (rule,) = render(values)["NetworkPolicy"]["spec"]["ingress"]
    admitted = {peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in rule["from"]}
    assert admitted == {"ingress-nginx", "monitoring"}
    assert render(values)["NetworkPolicy"]["spec"]["egress"] == []
    traced = values | {"settings": {"otlp_endpoint": "http://collector:4318/v1/traces"}}
    assert render(traced)["NetworkPolicy"]["spec"]["egress"] == [{}]


def test_own_keys_become_a_secret_that_the_server_reads_and_are_mounted(tmp_path):
    manifests = render(CASES["keda-values"])
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    secret = manifests["Secret"]["stringData"]
    (tmp_path / "keys").write_text(secret["keys"])
    assert Keys.load(tmp_path / "keys").find("test").sessions == 10
    (ticket,) = (e for e in pod["containers"][0]["env"] if e["name"] == "DELTASPOT_TICKET_SECRET")
    assert ticket["valueFrom"]["secretKeyRef"]["key"] in secret
    assert any(v.get("secret", {}).get("secretName") == "words-deltaspot-keys" for v in pod["volumes"])


def test_autoscalers_own_the_number_of_pods():
    assert "replicas" not in render({"keda": {"enabled": True}})["Deployment"]["spec"]
    with pytest.raises(helm.HelmRenderError, match="exclude each other"):
        render({"keda": {"enabled": True}, "autoscaling": {"enabled": True}})


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 1},
        {"sessions": 0},
        {"ingress": {"host": ""}},
        {"settings": {"A B": 1}},
        {"keda": {"minReplicas": 0}},
    ],
)
def test_unknown_and_senseless_values_are_refused(values):
    report = helm.lint(CHART, values, strict=True)
    assert report["errors"]
