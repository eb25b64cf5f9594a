"""What each scheduler's variables amount to.

Slurm's and Open MPI's variables were taken from real jobs, which ``test_slurm_jobs`` and ``test_mpi_jobs`` run again.
The others are those of the schedulers' documentation.
"""

from __future__ import annotations

from typing import Any

import pytest
from cluster_places import ENVIRONMENTS, Place, find, found
from hypothesis import given, strategies as st

from quorate import UsageError
from quorate.cli._cluster import find_cluster
from quorate.clusters import ClusterJob
from quorate.plugins import get_host
from quorate_cluster._hosts import port_for


def place_of(job: ClusterJob) -> tuple[Any, ...]:
    return job.job_id, job.max_nodes, job.node_rank, job.endpoint_host


STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_JOB_NODELIST": "n[1-3,7],m04",
    "SLURM_JOB_NUM_NODES": "5",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "3",
    "SLURM_STEP_NODELIST": "n[1-3,7],m04",
    "SLURM_STEP_NUM_NODES": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "1(x5)",
    "SLURMD_NODENAME": "n7",
}
BATCH = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_JOB_NUM_NODES": "2", "SLURM_PROCID": "0"}

# --- Slurm ------------------------------------------------------------------------------------------------------------


def test_a_step_of_slurm() -> None:
    job = found("slurm", STEP)
    assert place_of(job) == ("4711", 5, 3, "n1")
    assert (job.title, job.run_id, job.endpoint_port, job.node_name) == ("Slurm job 4711", "train-4711", 31111, "n7")
    assert (job.problem, job.requeue, job.kill_seconds) == ("", ("scontrol", "requeue", "4711"), 30.0)


def test_steps_and_arrays_and_starts_have_names_and_ports_of_their_own() -> None:
    array = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "4703"}
    jobs = [
        found("slurm", STEP),
        found("slurm", {**STEP, "SLURM_STEP_ID": "2"}),
        found("slurm", {**STEP, **array}),
        found("slurm", {**STEP, "SLURM_RESTART_COUNT": "1"}),
    ]
    assert [job.run_id for job in jobs] == ["train-4711", "train-4711.2", "train-4700_3", "train-4711-r1"]
    assert [job.endpoint_port for job in jobs] == [31111, 29400 + (4711 + 2 * 509) % 3000, 31103, 31111]
    assert found("slurm", {**STEP, "SLURM_STEP_RESV_PORTS": "12000-12001"}).endpoint_port == 12000


@pytest.mark.parametrize("per_node", ["2(x2),1", "4,1", "1,2"])
def test_several_tasks_on_a_node_are_a_problem(per_node: str) -> None:
    environment = {**STEP, "SLURM_STEP_TASKS_PER_NODE": per_node, "SLURM_STEP_NODELIST": "n[1-3]"}
    assert "srun --nodes=3 --ntasks=3 --ntasks-per-node=1 quorate run" in found("slurm", environment).problem


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "4294967290"}, {"SLURM_STEP_ID": "4294967291"}])
def test_a_batch_script_or_a_shell_is_one_node_of_its_job(step: dict[str, str]) -> None:
    job = found("slurm", {**BATCH, **step})
    assert (job.max_nodes, job.job_name) == (1, "train")
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 quorate run" in job.problem
    assert job.node_rank is None  # so that --nnodes=2 does not make it wait for nodes that nobody starts
    assert found("slurm", {**BATCH, **step, "SLURM_JOB_NUM_NODES": "1"}).problem == ""


def test_the_script_of_a_heterogeneous_job_is_one_node_of_all_its_parts() -> None:
    parts = {"SLURM_HET_SIZE": "2", "SLURM_JOB_NUM_NODES_HET_GROUP_0": "1", "SLURM_JOB_NUM_NODES_HET_GROUP_1": "2"}
    problem = found("slurm", {**BATCH, **parts, "SLURM_JOB_NUM_NODES": "1"}).problem
    assert "a job with 3 nodes" in problem
    assert "srun --het-group=0-1 quorate run" in problem


@pytest.mark.parametrize(
    ("changed", "host", "is_told"),
    [
        ({}, "login", True),
        ({}, "n1.site", False),  # salloc was called on the node
        ({"SLURMD_NODENAME": "n1"}, "other-name", False),  # Slurm has started this on a node
    ],
)
def test_a_shell_of_salloc_says_that_it_is_not_on_the_node(changed: dict[str, str], host: str, is_told: bool) -> None:
    salloc = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1", **changed}
    job = found("slurm", salloc, Place(host))
    assert ("on login, and not on the job's node n1" in job.described(1, 1, "").sentence) is is_told
    assert job.problem == ""


@pytest.mark.parametrize("names", [("SLURM_NTASKS",), ("SLURM_NPROCS",)])
def test_a_step_that_has_only_the_variables_of_its_job(names: tuple[str, ...]) -> None:
    step = {name: value for name, value in STEP.items() if not name.startswith("SLURM_STEP_") or "_ID" in name}
    assert found("slurm", {**step, **dict.fromkeys(names, "5")}).max_nodes == 5
    several = {**step, **dict.fromkeys(names, "7"), "SLURM_TASKS_PER_NODE": "2(x3),1"}
    assert "--nproc-per-node=2" in found("slurm", several).problem


@given(st.integers(1, 10**9 - 3001), st.integers(1, 2999))
def test_jobs_that_follow_each_other_meet_at_ports_of_their_own(job: int, later: int) -> None:
    assert port_for(str(job)) != port_for(str(job + later))
    assert port_for(f"{job}.head") == port_for(f"{job}[].head") == port_for(str(job))
    assert 29400 <= port_for(f"\u0192{job}") < 32768


def test_slurm_says_how_long_it_waits_before_it_kills_and_what_time_is_left() -> None:
    files = {"/conf": "ClusterName=x\n# KillWait=9\nkillwait=7\n"}
    asked = ("squeue", "--noheader", "--jobs=4711", "--format=%L %r")
    outputs = {asked: "1:30 None\n"}
    place = Place(files=files, outputs=outputs)
    job = found("slurm", {**STEP, "SLURM_CONF": "/conf"}, place)
    assert job.kill_seconds == 7.0
    assert job.seconds_left is not None
    assert 89.0 < (job.seconds_left() or 0.0) <= 90.0
    outputs[asked] = "INVALID None\n"  # the job is being ended, and not by its limit
    assert 60.0 < (job.seconds_left() or 0.0) <= 90.0
    unknown = found("slurm", {**STEP, "SLURM_CONF": "/conf"}, place).seconds_left
    assert unknown is not None
    assert unknown() is None
    outputs[asked] = "INVALID TimeLimit\n"
    assert unknown() == 0.0
    assert job.seconds_left() == 0.0


def test_gpus_of_a_node_are_its_workers() -> None:
    assert found("slurm", {**STEP, "SLURM_GPUS_ON_NODE": "8"}).workers == 8
    assert found("slurm", STEP).workers is None


# --- MPI --------------------------------------------------------------------------------------------------------------

MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_MCA_orte_num_nodes": "2",
    "OMPI_MCA_orte_hnp_uri": "832438272.0;tcp://192.0.2.2,198.51.100.7:35549;tcp6://[fd00::2]:54221",
    "PMIX_NAMESPACE": "832438273",
    "PMIX_RANK": "1",
}
MPI_5 = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "PMIX_NAMESPACE": "prterun-head-7-4711@1",
    "PMIX_RANK": "1",
}


def test_open_mpi() -> None:
    job = found("openmpi", MPI)
    assert place_of(job) == ("", 2, 1, "192.0.2.2")
    assert job.endpoint_port == found("openmpi", {**MPI, "OMPI_COMM_WORLD_RANK": "0"}).endpoint_port
    assert place_of(found("openmpi", MPI_5)) == ("", 2, 1, "head-7")


def test_agents_of_mpirun_on_one_machine() -> None:
    alone = {**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_MCA_orte_num_nodes": "1"}
    assert (found("openmpi", alone).problem, found("openmpi", alone).endpoint_host) == ("", "127.0.0.1")
    for changed in ({"OMPI_MCA_orte_num_nodes": "2"}, {"OMPI_COMM_WORLD_SIZE": "4"}):
        assert "mpirun --map-by ppr:1:node quorate run" in found("openmpi", {**alone, **changed}).problem


def test_pmix_alone_does_not_say_how_many() -> None:
    job = found("pmix", {"PMIX_RANK": "1", "PMIX_NAMESPACE": "prterun-head-4711@1"})
    assert (job.node_rank, job.endpoint_host, job.max_nodes) == (1, "head", None)
    assert "--nnodes=N" in job.problem


def test_pmi() -> None:
    job = found("pmi", {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "1", "PMI_PORT": "n1:40000"})
    assert place_of(job) == ("", 2, 1, "n1")
    assert "-ppn 1" in found("pmi", {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}).problem


#: What the launcher adds to the variables of the script that has called it.
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "1", "MPI_LOCALRANKID": "0"}
PALS = {"PMI_RANK": "1", "PMI_SIZE": "2", "PALS_RANKID": "1", "PMI_LOCAL_SIZE": "1"}


@pytest.mark.parametrize("launcher", [HYDRA, PALS])
@pytest.mark.parametrize("scheduler", ["slurm", "pbs", "lsf"])
def test_mpiexec_in_the_script_of_a_scheduler(launcher: dict[str, str], scheduler: str) -> None:
    scripts = {
        "slurm": ({**BATCH, "SLURM_JOB_NODELIST": "n[1-2]"}, Place("n1")),
        "pbs": (PBS, Place("n1", PBS_FILES)),
        "lsf": (LSF, Place("n1", {"/hosts": "n1\nn2\n"})),
    }
    variables, place = scripts[scheduler]
    assert found(scheduler, variables, place).problem  # the script itself is refused
    job = find_cluster("auto", get_host(), {**variables, **launcher}, place)
    assert job is not None
    assert (job.problem, job.max_nodes, job.node_rank) == ("", 2, 1)
    assert job.endpoint_host in ("n1", "n1.site")
    assert job.endpoint_port != 29400  # two jobs may share a machine
    assert job.title.startswith("MPI in ")


def test_a_process_of_srun_with_pmi_is_a_node_of_slurm() -> None:
    job = find_cluster("auto", get_host(), {**STEP, "PMI_RANK": "3", "PMI_SIZE": "5"}, Place("n7"))
    assert job is not None
    assert (job.title, job.node_rank) == ("Slurm job 4711", 3)


# --- PBS, LSF, Flux ---------------------------------------------------------------------------------------------------

PBS = {"PBS_JOBID": "17.head", "PBS_JOBNAME": "train", "PBS_NODEFILE": "/nodes", "PBS_NODENUM": "1", "PBS_TASKNUM": "1"}
PBS_FILES = {"/nodes": "n1.site\nn1.site\nn2.site\nn2.site\n"}


def test_pbs() -> None:
    job = found("pbs", PBS, Place("n2", PBS_FILES))
    assert place_of(job) == ("17.head", 2, 1, "n1.site")
    assert (job.run_id, job.problem, job.requeue) == ("train-17.head", "", ("qrerun", "17.head"))


def test_the_script_of_a_pbs_job_is_not_a_node() -> None:
    assert "pbsdsh -- quorate run" in found("pbs", PBS, Place("n1", PBS_FILES)).problem
    assert found("pbs", {**PBS, "PBS_TASKNUM": "2"}, Place("n1", PBS_FILES)).problem == ""
    assert found("pbs", PBS, Place("n1", {"/nodes": "n1\nn1\n"})).problem == ""


def test_a_list_of_pbs_that_cannot_be_read_and_an_agent_a_slot_are_problems() -> None:
    assert "cannot be read" in found("pbs", PBS).problem
    assert "pbsdsh -u" in found("pbs", {**PBS, "PBS_VNODENUM": "3"}, Place("n2", PBS_FILES)).problem
    assert found("pbs", {**PBS, "PBS_VNODENUM": "2"}, Place("n2", PBS_FILES)).problem == ""


LSF = {"LSB_JOBID": "99", "LSB_JOBNAME": "train", "LSB_DJOB_HOSTFILE": "/hosts"}
BLAUNCH = {"LSF_PM_TASKID": "2"}


def test_lsf() -> None:
    files = {"/hosts": "n1\nn1\nn2\nn2\n"}
    assert place_of(found("lsf", {**LSF, **BLAUNCH}, Place("n2", files))) == ("99", 2, 1, "n1")
    listed = {"LSB_JOBID": "99", "LSB_JOBINDEX": "3", "LSB_MCPU_HOSTS": "n1 2 n2 2", **BLAUNCH}
    assert place_of(found("lsf", listed, Place("n2.site"))) == ("99[3]", 2, 1, "n1")
    assert "blaunch" in found("lsf", LSF, Place("login", files)).problem


def test_the_script_of_an_lsf_job_is_not_a_node() -> None:
    job = found("lsf", LSF, Place("n1", {"/hosts": "n1\nn1\nn2\n"}))
    assert 'blaunch -z "$(sort -u $LSB_DJOB_HOSTFILE)" quorate run' in job.problem
    assert job.node_rank is None
    assert found("lsf", LSF, Place("n1", {"/hosts": "n1\nn1\n"})).problem == ""


def test_jsrun() -> None:
    environment = {**LSF, "JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_LOCAL_SIZE": "1"}
    assert place_of(found("lsf", environment, Place("n1", {"/hosts": "launch\nn1\nn2\n"}))) == ("99", 2, 0, "n1")
    assert "jsrun" in found("lsf", {**environment, "JSM_NAMESPACE_LOCAL_SIZE": "6"}).problem


def test_flux() -> None:
    environment = {"FLUX_JOB_ID": "\u01923ETx", "FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2", "FLUX_JOB_NNODES": "2"}
    place = Place(outputs={("flux", "jobs", "-no", "{nodelist}", "\u01923ETx"): "node[5-6]\n"})
    job = found("flux", environment, place)
    assert (*place_of(job), job.run_id) == ("\u01923ETx", 2, 1, "node5", "flux-f3ETx")
    assert (
        "flux run --nodes=2 --tasks-per-node=1" in found("flux", {**environment, "FLUX_JOB_SIZE": "8"}, place).problem
    )


# --- platforms --------------------------------------------------------------------------------------------------------


def test_skypilot() -> None:
    environment = {
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_TASK_ID": "sky-2026-01-01-00-00-00-000000_train_1",
    }
    job = found("skypilot", environment)
    assert place_of(job)[1:] == (2, 1, "10.0.0.1")
    assert (job.workers, job.local_addr) == (8, "10.0.0.2")


def test_sagemaker() -> None:
    hosts = '["algo-10", "algo-1", "algo-9"]'
    environment = {"TRAINING_JOB_NAME": "t", "SM_HOSTS": hosts, "SM_CURRENT_HOST": "algo-10", "SM_NUM_GPUS": "4"}
    assert (*place_of(found("sagemaker", environment)), 4) == ("t", 3, 2, "algo-1", 4)
    files = {"/opt/ml/input/config/resourceconfig.json": f'{{"current_host": "algo-9", "hosts": {hosts}}}'}
    assert place_of(found("sagemaker", {"TRAINING_JOB_NAME": "t"}, Place(files=files))) == ("t", 3, 1, "algo-1")
    assert find("sagemaker", {"TRAINING_JOB_NAME": "t"}) is None


def test_ray_train_with_one_worker_a_node() -> None:
    environment = {
        "RAY_JOB_ID": "02000000",
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "40000",
    }
    assert place_of(found("ray", environment)) == ("02000000", 2, 1, "10.0.0.1")
    other = found("ray", {**environment, "MASTER_PORT": "40001"})  # another run of the same Ray job
    assert other.endpoint_port != found("ray", environment).endpoint_port
    assert "ScalingConfig" in found("ray", {**environment, "LOCAL_WORLD_SIZE": "8"}).problem


def test_the_bare_contract() -> None:
    environment = {"MASTER_ADDR": "head", "MASTER_PORT": "29600", "RANK": "1", "WORLD_SIZE": "2"}
    job = found("variables", environment)
    assert (*place_of(job), job.master_port) == ("", 2, 1, "head", 29600)
    by_node = found("variables", {**environment, "WORLD_SIZE": "16", "NNODES": "2", "NODE_RANK": "0"})
    assert (by_node.max_nodes, by_node.node_rank) == (2, 0)
    assert find("variables", {**environment, "LOCAL_RANK": "0"}) is None  # a worker, not a node
    for changed in ({"RANK": "2"}, {"NNODES": "2", "NODE_RANK": "2"}):  # ranks that count from 1
        assert "ranks count from 0" in found("variables", {**environment, **changed}).problem
    assert found("variables", {**environment, "RANK": " 1\n"}).node_rank == 1


# --- Kubernetes -------------------------------------------------------------------------------------------------------

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "JOB_COMPLETION_INDEX": "1", "HOSTNAME": "train-1"}
SERVICE = {"/etc/hosts": "127.0.0.1 localhost\n10.1.0.9\ttrain-1.train.default.svc.cluster.local\ttrain-1\n"}


def test_an_indexed_job_with_a_headless_service() -> None:
    job = found("kubernetes", {**POD, "PET_NNODES": "2"}, Place(files=SERVICE))
    assert place_of(job) == ("train", 2, 1, "train-0.train.default.svc.cluster.local")
    assert (job.local_addr, job.problem, job.warnings, job.kill_seconds) == ("10.1.0.9", "", ("SIGTERM",), 30.0)
    own = {"/etc/hosts": f"127.0.1.1 train-1\n{SERVICE['/etc/hosts']}"}  # an image's own line
    assert found("kubernetes", {**POD, "PET_NNODES": "2"}, Place(files=own)).local_addr == "10.1.0.9"
    longer = found("kubernetes", {**POD, "QUORATE_TERMINATION_GRACE_SECONDS": "120"}, Place(files=SERVICE))
    assert longer.kill_seconds == 120.0
    at_once = found("kubernetes", {**POD, "QUORATE_TERMINATION_GRACE_SECONDS": "0"})
    assert at_once.kill_seconds == 0.0
    for text in ("1m", "0.5", "-1", "1e3"):
        with pytest.raises(UsageError, match=f"QUORATE_TERMINATION_GRACE_SECONDS={text} is not"):
            find("kubernetes", {**POD, "QUORATE_TERMINATION_GRACE_SECONDS": text})


def test_what_a_pod_is_not_told_is_named() -> None:
    assert "PET_NNODES" in found("kubernetes", POD, Place(files=SERVICE)).problem
    assert found("kubernetes", POD).problem == ""  # no service: pods that work alone
    assert "headless service" in found("kubernetes", {**POD, "NNODES": "2"}).problem


def test_a_jobset_of_several_jobs() -> None:
    labels = {
        "jobset.sigs.k8s.io/jobset-name": "js",
        "jobset.sigs.k8s.io/replicatedjob-name": "workers",
        "jobset.sigs.k8s.io/replicatedjob-replicas": "2",
        "jobset.sigs.k8s.io/job-index": "1",
        "jobset.sigs.k8s.io/restart-attempt": "3",
    }
    files = {
        "/etc/hosts": "10.1.0.9 js-workers-1-0.js.ns.svc.cluster.local js-workers-1-0\n",
        "/etc/podinfo/labels": "".join(f'{name}="{value}"\n' for name, value in labels.items()),
    }
    pod = {**POD, "HOSTNAME": "js-workers-1-0", "JOB_COMPLETION_INDEX": "0", "PET_NNODES": "4"}
    job = found("kubernetes", pod, Place(files=files))
    assert place_of(job) == ("js", 4, 2, "js-workers-0-0.js.ns.svc.cluster.local")
    assert job.run_id == "js-r3"


def test_pods_of_kubeflow_and_of_the_bare_contract() -> None:
    pet = {"KUBERNETES_SERVICE_HOST": "1", "HOSTNAME": "t-node-0-1", "PET_NODE_RANK": "1", "PET_NNODES": "2"}
    assert found("kubernetes", pet).title == "Kubernetes job t-node-0"
    assert found("kubernetes", {**pet, "JOB_COMPLETION_INDEX": "1"}).run_id == "t-node-0"
    bare = {"KUBERNETES_SERVICE_HOST": "1", "MASTER_ADDR": "t-master-0", "RANK": "1", "WORLD_SIZE": "2"}
    assert place_of(found("kubernetes", bare))[1:] == (2, 1, "t-master-0")
    assert find("kubernetes", {"KUBERNETES_SERVICE_HOST": "1", "HOSTNAME": "web-7d9f"}) is None


@pytest.mark.parametrize("files", [{}, {"/etc/podinfo/labels": 'training.kubeflow.org/job-name="t"\n'}])
def test_pods_of_several_kinds_are_in_one_job(files: dict[str, str]) -> None:
    master, worker = (
        found(
            "kubernetes",
            {
                "KUBERNETES_SERVICE_HOST": "1",
                "HOSTNAME": name,
                "MASTER_ADDR": "t-master-0",
                "RANK": rank,
                "WORLD_SIZE": "2",
            },
            Place(files=files),
        )
        for name, rank in (("t-master-0", "0"), ("t-worker-0", "1"))
    )
    assert master.run_id == worker.run_id
    assert master.title == worker.title == "Kubernetes job t"


# --- all --------------------------------------------------------------------------------------------------------------

ALL_VARIABLES = sorted({*STEP, *MPI, *PBS, *LSF, *POD, "FLUX_JOB_ID", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "RAY_JOB_ID"})


@given(st.dictionaries(st.sampled_from(ALL_VARIABLES), st.text(alphabet="01a.-[x]", max_size=6)))
def test_no_variables_confuse_a_finder(environment: dict[str, str]) -> None:
    for backend in ENVIRONMENTS.values():
        try:
            job = backend.find(environment, Place())
        except UsageError:
            continue
        assert job is None or (job.node_rank is None or job.node_rank >= 0)


def test_an_empty_environment_belongs_to_nobody() -> None:
    assert [name for name in ENVIRONMENTS if find(name, {}) is not None] == []
