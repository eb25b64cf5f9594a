"""The recipes for clusters in ``examples/``: manifests that fit their schemas, and what quorate makes of them.

What does not live here: real jobs (``plugins/cluster``, ``plugins/ssh``).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from attrs import field, frozen

from quorate.cli import ExitCode
from quorate.cli._flags import FLAGS
from quorate.policy import DO_NOT_RESTART, PREEMPTED_CODE
from quorate_cluster import plugin
from quorate_ssh import parse_hostfile

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
KUBERNETES = EXAMPLES / "kubernetes"
SECONDS = 60.0

# --- schemas ----------------------------------------------------------------------------------------------------------
# The parts of the API that the manifests use, as its reference states them: name -> type, a set of values, or a schema.
# A name with ! is required.  No other name is permitted: a misspelt field is refused by the API's strict validation.

TEXT_MAP: dict[str, Any] = {"*": str}
CONTAINER = {
    "name!": str,
    "image!": str,
    "command": [str],
    "env": [{"name!": str, "value": str, "valueFrom": {"*": object}}],
    "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool}],
}
POD = {
    "metadata": {"labels": TEXT_MAP, "annotations": TEXT_MAP},
    "spec!": {
        "subdomain": str,
        "restartPolicy!": {"Never", "OnFailure"},
        "terminationGracePeriodSeconds": int,
        "containers!": [CONTAINER],
        "volumes": [
            {"name!": str, "downwardAPI": {"items!": [{"path!": str, "fieldRef!": {"fieldPath!": str}}]}},
        ],
    },
}
RULE = {
    "action!": {"Ignore", "FailJob", "Count", "FailIndex"},
    "onExitCodes": {"operator!": {"In", "NotIn"}, "values!": [int], "containerName": str},
    "onPodConditions": [{"type!": str, "status": str}],
}
JOB = {
    "completionMode": {"Indexed", "NonIndexed"},
    "completions": int,
    "parallelism": int,
    "backoffLimit": int,
    "podFailurePolicy": {"rules!": [RULE]},
    "template!": POD,
}
META = {"name!": str, "labels": TEXT_MAP, "annotations": TEXT_MAP}
SCHEMAS: Mapping[tuple[str, str], dict[str, Any]] = {
    ("v1", "Service"): {
        "spec!": {"clusterIP": {"None"}, "publishNotReadyAddresses": bool, "selector!": TEXT_MAP},
    },
    ("batch/v1", "Job"): {"spec!": JOB},
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): {
        "spec!": {
            "failurePolicy": {"maxRestarts": int},
            "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool, "subdomain": str},
            "replicatedJobs!": [{"name!": str, "replicas": int, "template!": {"metadata": META, "spec!": JOB}}],
        },
    },
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): {
        "spec!": {
            "runtimeRef!": {"name!": str, "kind": str, "apiGroup": str},
            "trainer": {"numNodes": int, "numProcPerNode": int, "image": str, "command": [str], "args": [str]},
        },
    },
}


def misfits(value: Any, schema: Any, where: str) -> list[str]:
    """Return what in ``value`` does not fit ``schema``, by its place."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{where} is not a mapping"]
        known = {name.rstrip("!"): part for name, part in schema.items()}
        found = [f"{where}.{name[:-1]} is missing" for name in schema if name.endswith("!") and name[:-1] not in value]
        for name, part in value.items():
            if name not in known and "*" not in known:
                found.append(f"{where}.{name} is not a field")
            else:
                found += misfits(part, known.get(name, known.get("*")), f"{where}.{name}")
        return found
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where} is not a list"]
        return [text for at, item in enumerate(value) for text in misfits(item, schema[0], f"{where}[{at}]")]
    if isinstance(schema, set):
        return [] if value in schema else [f"{where} is {value!r}, which is not one of {sorted(schema)}"]
    fits = isinstance(value, schema) and (schema is not int or not isinstance(value, bool))
    return [] if fits else [f"{where} is {value!r}, which is not a {schema.__name__}"]


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@pytest.mark.parametrize("path", sorted(KUBERNETES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_manifest_fits_its_schema(path: Path) -> None:
    found = documents(path)
    assert found
    for document in found:
        schema = SCHEMAS[document["apiVersion"], document["kind"]]
        assert (
            misfits(document, {"apiVersion!": str, "kind!": str, "metadata!": META, **schema}, document["kind"]) == []
        )


#: Reads manifests with the libraries of those who define the API, and writes what they have understood.
CLIENT = """
import json, sys
import kubeflow_trainer_api.models as kubeflow
from kubernetes import client

MODELS = {"JobSet": kubeflow.JobsetV1alpha2JobSet, "TrainJob": kubeflow.TrainerV1alpha1TrainJob}
api = client.ApiClient()

def understood(text):
    kind = json.loads(text)["kind"]
    if kind in MODELS:
        return MODELS[kind].from_json(text).to_dict()
    return api.sanitize_for_serialization(api.deserialize(text, f"V1{kind}", "application/json"))

for line in sys.stdin:
    try:
        print(json.dumps(understood(line)))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def understood(manifests: list[dict[str, Any]]) -> list[Any]:
    """Return what the client libraries make of manifests: the same again, or less, or why they are refused."""
    python = ROOT / ".venv-kubernetes/bin/python"
    if not python.exists():
        pytest.skip("the client libraries of Kubernetes and Kubeflow are not installed (make kubernetes)")
    lines = "\n".join(map(json.dumps, manifests))
    done = subprocess.run([python, "-c", CLIENT], input=lines, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_client_libraries_understand_every_field_of_the_manifests() -> None:
    manifests = [document for path in sorted(KUBERNETES.glob("*.yaml")) for document in documents(path)]
    (job,) = [json.loads(json.dumps(each)) for each in manifests if each["kind"] == "Job"]
    (train_job,) = [json.loads(json.dumps(each)) for each in manifests if each["kind"] == "TrainJob"]
    job["spec"]["completion"] = 2
    train_job["spec"]["trainer"]["numNodes"] = "two"
    *found, misspelt, mistyped = understood([*manifests, job, train_job])
    assert found == manifests
    assert "completion" not in misspelt["spec"]
    assert "numNodes" in mistyped
    assert "valid integer" in mistyped


def test_the_schemas_refuse_what_the_api_refuses() -> None:
    (_, job) = documents(KUBERNETES / "job.yaml")
    job["spec"]["completion"] = 2
    job["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    del job["spec"]["template"]["spec"]["containers"]
    assert misfits(job["spec"], JOB, "spec") == [
        "spec.template.spec.containers is missing",
        "spec.template.spec.restartPolicy is 'Always', which is not one of ['Never', 'OnFailure']",
        "spec.completion is not a field",
    ]


# --- what quorate makes of them ---------------------------------------------------------------------------------------


@frozen
class Pod:
    """A pod of a manifest."""

    host: str
    files: Mapping[str, str] = field(factory=dict)

    def read(self, path: str) -> str:
        return self.files.get(path, "")

    def output(self, *command: str) -> str:
        return ""


FIND = next(each.find for each in plugin.quorate_register_environment() if each.name == "kubernetes")


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def test_the_pods_of_the_job_form_one_job() -> None:
    service, job = documents(KUBERNETES / "job.yaml")
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    places = []
    for index in range(job["spec"]["completions"]):
        name = f"{job['metadata']['name']}-{index}"
        hosts = f"10.0.0.{index} {name}.{spec['subdomain']}.default.svc.cluster.local {name}\n"
        environment = {"KUBERNETES_SERVICE_HOST": "1", "JOB_COMPLETION_INDEX": str(index), "HOSTNAME": name}
        found = FIND({**environment, **variables(container)}, Pod(name, {"/etc/hosts": hosts}))
        assert found is not None
        places.append((found.max_nodes, found.node_rank, found.endpoint_host, found.problem))
        assert found.kill_seconds == spec["terminationGracePeriodSeconds"]
    first = "train-0.train.default.svc.cluster.local"
    assert places == [(2, 0, first, ""), (2, 1, first, "")]


def test_the_pods_of_the_jobset_form_one_job() -> None:
    (jobset,) = documents(KUBERNETES / "jobset.yaml")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    ranks = []
    for at in range(replicated["replicas"]):
        for index in range(job["completions"]):
            name = f"{jobset['metadata']['name']}-{replicated['name']}-{at}-{index}"
            labels = {
                "jobset.sigs.k8s.io/jobset-name": jobset["metadata"]["name"],
                "jobset.sigs.k8s.io/replicatedjob-name": replicated["name"],
                "jobset.sigs.k8s.io/replicatedjob-replicas": str(replicated["replicas"]),
                "jobset.sigs.k8s.io/job-index": str(at),
            }
            files = {
                "/etc/hosts": f"10.0.{at}.{index} {name}.train.ns.svc.cluster.local {name}\n",
                container["volumeMounts"][0]["mountPath"] + "/labels": "".join(
                    f"{key}={json.dumps(value)}\n" for key, value in labels.items()
                ),
            }
            environment = {"KUBERNETES_SERVICE_HOST": "1", "JOB_COMPLETION_INDEX": str(index), "HOSTNAME": name}
            found = FIND({**environment, **variables(container)}, Pod(name, files))
            assert found is not None
            ranks.append(found.node_rank)
            assert found.endpoint_host == "train-workers-0-0.train.ns.svc.cluster.local"
            assert found.max_nodes == 4
    assert ranks == [0, 1, 2, 3]


def test_the_exit_codes_of_the_manifest_are_quorates() -> None:
    (_, job) = documents(KUBERNETES / "job.yaml")
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule}
    assert codes == {
        "Ignore": [ExitCode.PREEMPTED],
        "FailJob": [ExitCode.USAGE, ExitCode.PLUGIN, ExitCode.DO_NOT_RESTART],
    }
    assert (ExitCode.PREEMPTED, ExitCode.DO_NOT_RESTART) == (PREEMPTED_CODE, DO_NOT_RESTART)


def test_the_recipes_use_flags_that_exist() -> None:
    known = {flag.name for flag in FLAGS} | {"hosts", "hostfile", "ssh-command"}
    for name in ("kubernetes", "slurm", "ssh"):
        texts = [path.read_text() for path in (EXAMPLES / name).glob("*") if path.is_file()]
        commands = re.findall(r"quorate\W+run\b(.*)", "\n".join(texts))
        assert commands, name
        for command in commands:
            assert set(re.findall(r"--([a-z-]+)", command)) <= known, (name, command)


def test_the_scripts_for_slurm_are_shell() -> None:
    paths = list((EXAMPLES / "slurm").glob("*.sh"))
    assert paths
    for path in paths:
        subprocess.run(["sh", "-n", str(path)], check=True, timeout=SECONDS)


def test_the_hostfile_names_its_hosts() -> None:
    hosts = parse_hostfile((ROOT / "examples/ssh/hosts").read_text(), "hosts")
    assert [(host.name, host.workers) for host in hosts] == [("alpha", 8), ("beta", 8)]


def test_the_training_loop_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """A pod's SIGTERM, a saved step, exit code 75, and another start."""
    script = str(ROOT / "examples/slurm/train.py")
    command = [sys.executable, "-m", "quorate", "run", script, str(tmp_path / "state"), "1000"]
    pod = {"KUBERNETES_SERVICE_HOST": "1", "JOB_COMPLETION_INDEX": "0", "HOSTNAME": "train-0"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "SLURM", "OMPI"))}
    agent = subprocess.Popen(
        command, env={**environment, **pod}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "rank 0 begins at step 0\n"
        agent.send_signal(signal.SIGTERM)
        out, err = agent.communicate(timeout=SECONDS)
    finally:
        agent.kill()
    assert agent.returncode == ExitCode.PREEMPTED, err
    step = int((tmp_path / "state-0").read_text())
    assert f"rank 0 saved step {step}, 2" in out  # of the 28 s that the pod has
    assert "the job can be started again (exit code 75)" in err
    again = subprocess.run(
        [*command[:-1], str(step + 1)],
        env={**environment, **pod},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, f"rank 0 begins at step {step}"), again.stderr
