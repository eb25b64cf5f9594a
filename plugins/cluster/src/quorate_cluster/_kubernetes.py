"""Kubernetes: Indexed Jobs with a headless service, JobSet, Kubeflow's trainers, and pods of the bare contract.

A pod learns its index from ``JOB_COMPLETION_INDEX``, its name and that of its service from ``/etc/hosts``, and its
labels where the downward API has written them to ``/etc/podinfo/labels``.  How many pods its Job has it does not learn:
the manifest says it (``PET_NNODES``, which Kubeflow sets by itself).  What does not live here: the manifests
(``examples/kubernetes``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, final

from attrs import frozen

from quorate.clusters import ClusterJob, Machine
from quorate.errors import UsageError
from quorate.net import is_local_name

from ._hosts import name_part, number
from ._variables import contract

_LABELS = "/etc/podinfo/labels"
_HOSTS = "/etc/hosts"
_JOBSET = "jobset.sigs.k8s.io/"
_BATCH = "batch.kubernetes.io/"
#: Labels that hold the job's name.
_NAMES = (f"{_JOBSET}jobset-name", f"{_BATCH}job-name", "training.kubeflow.org/job-name", "job-name")
#: What a trainer adds to its job's name to name a pod.
_ROLE = re.compile(r"(-(master|worker|chief|launcher))?-[^-]+$")
#: Kubernetes's default; a pod is not told its own.
_KILL_SECONDS = 30
_KILL_VARIABLE = "QUORATE_TERMINATION_GRACE_SECONDS"


@final
@frozen
class _Pod:
    """What a pod knows of itself: its host name, the domain of its service (empty: none), its address, its labels."""

    name: str
    domain: str
    address: str
    labels: Mapping[str, str]


def kubernetes(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    """Return what a pod of a job knows; ``None`` for a pod that belongs to none."""
    pod = _pod(environment, machine)
    known = contract(environment) if environment.get("MASTER_ADDR") else None
    index = number(environment, "JOB_COMPLETION_INDEX")
    if index is None:
        index = number(pod.labels, f"{_BATCH}job-completion-index")
    if index is None and known is None and not environment.get("PET_NODE_RANK"):
        return None
    name = _job_name(pod, index)
    # The names of pods of several kinds (t-master-0, t-worker-0) have no part that is surely the job's.
    is_known = index is not None or any(pod.labels.get(label) for label in _NAMES)
    return ClusterJob(
        scheduler="Kubernetes",
        job_id=name,
        job_name=name,
        run_id=_run_id(pod, name) if is_known else "",
        node_name=pod.name,
        local_addr=pod.address,
        warnings=("SIGTERM",),
        kill_seconds=_kill_seconds(environment),
        **(known or _by_index(environment, pod, index)),
    )


def _kill_seconds(environment: Mapping[str, str]) -> float:
    """Return what the manifest says of the time after SIGTERM.

    Raises:
        UsageError: that is not a whole number.
    """
    text = environment.get(_KILL_VARIABLE, "").strip()
    seconds = number(environment, _KILL_VARIABLE)
    if text and seconds is None:
        raise UsageError(f"{_KILL_VARIABLE}={text} is not the terminationGracePeriodSeconds of a pod, a whole number")
    return float(_KILL_SECONDS if seconds is None else seconds)


def _by_index(environment: Mapping[str, str], pod: _Pod, index: int | None) -> dict[str, Any]:
    """Return the node's place by its completion index, and by its Job's index in a JobSet."""
    nodes = number(environment, "PET_NNODES", "NNODES") or None
    jobs = number(pod.labels, f"{_JOBSET}replicatedjob-replicas") or 1
    first, rank = _first_pod(pod, index), index
    if jobs > 1 and index is not None:
        job_index = number(pod.labels, f"{_JOBSET}job-index") or 0
        if nodes and nodes % jobs == 0:
            rank = job_index * (nodes // jobs) + index
    problem = ""
    if nodes is None and (pod.domain or jobs > 1):
        problem = (
            "a pod is not told how many pods its Job has; set the variable PET_NNODES in the manifest to its number of "
            "completions (or PET_NNODES=1 for pods that work alone)"
        )
    elif nodes is not None and nodes > 1 and not pod.domain:
        problem = (
            "this pod has no name that others can resolve; give the Job a headless service and name it as the pods' "
            "subdomain (see docs/clusters.md)"
        )
    return {
        "min_nodes": nodes,
        "max_nodes": nodes,
        "node_rank": rank,
        "endpoint_host": f"{first}.{pod.domain}" if first and pod.domain else "",
        "problem": problem,
    }


def _pod(environment: Mapping[str, str], machine: Machine) -> _Pod:
    name = environment.get("HOSTNAME") or machine.host
    domain = address = ""
    for line in machine.read(_HOSTS).splitlines():
        words = line.partition("#")[0].split()
        if name not in words[1:]:
            continue
        if is_local_name(words[0]):  # an image's own line, which other pods cannot use
            continue
        address = words[0]
        full = next((word for word in words[1:] if word.startswith(f"{name}.")), "")
        domain = full.removeprefix(f"{name}.")
        break
    return _Pod(name, domain, environment.get("POD_IP") or address, _labels(machine.read(_LABELS)))


def _labels(text: str) -> dict[str, str]:
    """Return the labels in the format of the downward API: ``name="value"``, one a line."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value.strip().strip('"') for name, equals, value in pairs if equals}


def _job_name(pod: _Pod, index: int | None) -> str:
    for label in _NAMES:
        if pod.labels.get(label):
            return pod.labels[label]
    return pod.name.removesuffix(f"-{index}") if index is not None else _ROLE.sub("", pod.name) or pod.name


def _first_pod(pod: _Pod, index: int | None) -> str:
    """Return the name of the pod with rank 0."""
    jobset, job = pod.labels.get(f"{_JOBSET}jobset-name"), pod.labels.get(f"{_JOBSET}replicatedjob-name")
    if jobset and job:
        return f"{jobset}-{job}-0-0"
    if index is None or not pod.name.endswith(f"-{index}"):
        return ""
    return f"{pod.name.removesuffix(f'-{index}')}-0"


def _run_id(pod: _Pod, name: str) -> str:
    uid, attempt = pod.labels.get(f"{_BATCH}controller-uid", ""), pod.labels.get(f"{_JOBSET}restart-attempt", "")
    if pod.labels.get(f"{_JOBSET}jobset-name"):
        uid = pod.labels.get(f"{_JOBSET}jobset-uid", "")  # each Job of a JobSet has a uid of its own
    return "-".join(
        part for part in (name_part(name), uid[:8], f"r{attempt}" if attempt not in ("", "0") else "") if part
    )
