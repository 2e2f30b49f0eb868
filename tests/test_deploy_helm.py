"""The Helm chart through Helm's own library: linted, rendered, and checked against Kubernetes' schemas, strictly."""

from pathlib import Path

import pytest
import yaml

from service.app import PAGE, create_app
from service.auth import Keys
from service.server import Server
from service.settings import Settings

helm = pytest.importorskip("helm_python", reason="needs helm-python-sdk, Helm's own library as a wheel")
kubernetes = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "deltaspot"
CASES = {"default": {}} | {p.stem: yaml.safe_load(p.read_text()) for p in sorted((CHART / "ci").glob("*.yaml"))}
SIGNER = "0123456789abcdef0123456789abcdef"
"""A `ticketSecret` that is just long enough."""
CUSTOM = {"PrometheusRule", "ScaledObject", "ServiceMonitor"}
"""Kinds that operators bring, not Kubernetes."""

oldest_and_newest = pytest.mark.parametrize("version", ["1.25.0", kubernetes.latest_version()])
every_case = pytest.mark.parametrize("case", CASES)


def render(values):
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values=values, name="words", namespace="speech")
    manifests = [m for name, text in files.items() if name.endswith(".yaml") for m in yaml.safe_load_all(text) if m]
    return {manifest["kind"]: manifest for manifest in manifests}


def notes(values):
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values=values, name="words", namespace="speech")
    return next(text for name, text in files.items() if name.endswith("NOTES.txt"))


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
        "PrometheusRule",
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
    pod = render(CASES[case])["Deployment"]["spec"]["template"]["spec"]
    env = {variable["name"] for variable in pod["containers"][0]["env"]}
    assert pod["enableServiceLinks"] is False, "Kubernetes would add DELTASPOT_PORT, if a service has our name"
    known = {f"DELTASPOT_{name.upper()}" for name in Settings.model_fields}
    assert env <= known


def test_whole_numbers_reach_the_server_whole():
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
    assert annotations(text="a") != annotations(text="a", ticketSecret=SIGNER)


def test_the_operator_gets_the_rules_that_promtool_tests():
    rules = render(CASES["internet-values"])["PrometheusRule"]
    files = [
        yaml.safe_load((CHART.parents[1] / "prometheus" / name).read_text()) for name in ("alerts.yml", "recording.yml")
    ]
    assert rules["spec"]["groups"] == [group for file in files for group in file["groups"]]
    assert rules["metadata"]["labels"]["release"] == "prometheus"


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


@pytest.mark.parametrize("beside", ["text", "ticketSecret"])
def test_what_an_existing_secret_would_put_aside_is_refused(beside):
    with pytest.raises(helm.HelmRenderError, match=r"leave out keys\.text and keys\.ticketSecret"):
        render({"keys": {"existingSecret": "words-keys", beside: SIGNER}})


def test_several_pods_without_one_secret_for_their_tickets_are_warned_of():
    warning = "keys.ticketSecret is not set"
    assert warning in notes({"keys": {"text": "a"}})
    assert warning in notes({"keys": {"text": "a"}, "replicas": 1, "autoscaling": {"enabled": True}})
    assert warning not in notes({"keys": {"text": "a"}, "replicas": 1})
    assert warning not in notes(CASES["keda-values"])
    assert warning not in notes({})


def test_page_of_an_ingress_that_the_server_would_refuse_is_told():
    def told(**values):
        return """settings.origins='["https://deltaspot.example.org"]'""" in notes(values)

    ingress = {"enabled": True, "tlsSecret": "words"}
    assert told(ingress=ingress)
    assert not told(ingress=ingress, keys={"text": "a", "ticketSecret": SIGNER})
    assert not told(ingress=ingress, settings={"origins": '["https://deltaspot.example.org"]'})
    assert not told()


def test_the_ingress_leads_to_all_that_is_served_but_metrics():
    (rule,) = render({"ingress": {"enabled": True}})["Ingress"]["spec"]["rules"]
    kinds = {path["path"]: path["pathType"] for path in rule["http"]["paths"]}
    assert kinds.pop("/v1") == "Prefix"
    assert set(kinds.values()) == {"Exact"}
    app = create_app(Server(Settings()))
    routes = {*app.openapi()["paths"], *(getattr(route, "path", "/") for route in app.routes)}
    page = {f"/{file.name}" for file in PAGE.iterdir() if file.suffix not in {".ts", ".json"}}  # what browsers load
    assert set(kinds) | {"/metrics"} == {path for path in routes | page if not path.startswith("/v1/")}


def test_clips_that_the_server_takes_pass_the_ingress():
    def size(**settings):
        annotations = render({"ingress": {"enabled": True}, "settings": settings})["Ingress"]["metadata"]["annotations"]
        return annotations["nginx.ingress.kubernetes.io/proxy-body-size"]

    assert size() == str(Settings().clip_bytes)
    assert size(clip_bytes=67_108_864) == "67108864"


def test_satellites_get_a_port_if_there_is_one():
    manifests = render({"wyoming": {"port": 10400}, "networkPolicy": {"enabled": True}})
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    (rule,) = manifests["NetworkPolicy"]["spec"]["ingress"]
    assert {"name": "wyoming", "containerPort": 10400, "protocol": "TCP"} in container["ports"]
    assert {"name": "DELTASPOT_WYOMING_PORT", "value": "10400"} in container["env"]
    assert manifests["Service"]["spec"]["ports"][1]["targetPort"] == "wyoming"
    assert rule["ports"][1]["port"] == "wyoming"
    assert "wyoming" not in str(render({"networkPolicy": {"enabled": True}}))


def test_volumes_of_ones_own_are_mounted_beside_the_charts():
    pod = render(CASES["small-values"])["Deployment"]["spec"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["tmp", "data"]
    assert {"name": "data", "mountPath": "/data"} in pod["containers"][0]["volumeMounts"]


def test_autoscalers_own_the_number_of_pods():
    scaled = {"keda": {"enabled": True}, "serviceMonitor": {"enabled": True}}
    assert "replicas" not in render(scaled)["Deployment"]["spec"]
    with pytest.raises(helm.HelmRenderError, match=r"needs serviceMonitor\.enabled"):
        render({"keda": {"enabled": True}})
    with pytest.raises(helm.HelmRenderError, match="exclude each other"):
        render(scaled | {"autoscaling": {"enabled": True}})


def test_pods_are_added_at_what_the_sizing_guide_plans_for_a_core():
    scaled = render(CASES["keda-values"])["ScaledObject"]["spec"]["triggers"][0]["metadata"]
    assert f"one core carries {scaled['threshold']} streams" in (CHART.parents[1] / "README.md").read_text()


def test_settings_that_the_chart_makes_itself_are_refused():
    pod = render({"keys": {"text": "a"}, "wyoming": {"port": 10400}})["Deployment"]["spec"]["template"]["spec"]
    own = {variable["name"].removeprefix("DELTASPOT_").lower() for variable in pod["containers"][0]["env"]}
    assert {"drain_s", "keys", "sessions", "ticket_secret", "wyoming_port"} == own
    taken = own | {"host", "port", "tls_cert", "tls_key"}  # ports, probes and the ingress rely on the latter
    for name in Settings.model_fields:
        assert bool(helm.lint(CHART, {"settings": {name: "1"}}, strict=True)["errors"]) == (name in taken), name


def test_ones_own_annotations_of_the_ingress_take_the_place_of_the_charts():
    name = "nginx.ingress.kubernetes.io/proxy-body-size"
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values={"ingress": {"enabled": True, "annotations": {name: "1m"}}})
    (ingress,) = (text for file, text in files.items() if file.endswith("/ingress.yaml"))
    assert ingress.count(f"{name}:") == 1, "a key twice is no YAML"
    assert yaml.safe_load(ingress)["metadata"]["annotations"][name] == "1m"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"wyoming": {"port": 8770}}, "two doors need two ports"),
        ({"wyoming": {"port": 10400}, "service": {"port": 10400}}, "two doors need two ports"),
        ({"keys": {"text": "a", "ticketSecret": SIGNER[1:]}}, r"keys\.ticketSecret needs 32 characters"),
        ({"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}}, r"above autoscaling\.maxReplicas"),
        (
            {"keda": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}, "serviceMonitor": {"enabled": True}},
            r"above keda\.maxReplicas",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(values, why):
    with pytest.raises(helm.HelmRenderError, match=why):
        render(values)


@pytest.mark.parametrize("name", yaml.safe_load((CHART / "values.yaml").read_text()))
def test_a_value_that_is_null_is_done_without_or_named(name):
    values = {"ingress": {"enabled": True}, "networkPolicy": {"enabled": True}} | CASES["keda-values"] | {name: None}
    try:
        render(values)
    except helm.HelmValuesError as error:
        assert f"missing property '{name}'" in str(error)  # noqa: PT017 (a refusal by the schema is as good)


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 1},
        {"sessions": 0},
        {"ingress": {"host": ""}},
        {"settings": {"A B": 1}},
        {"settings": {"sesions": 1}},
        {"keda": {"minReplicas": 0}},
    ],
)
def test_unknown_and_senseless_values_are_refused(values):
    report = helm.lint(CHART, values, strict=True)
    assert report["errors"]
