"""Released programs that call torch's launchers or train under them, by ``quorate run``, warm, and ``quorate exec``.

They are looked for in the Python that ``QUORATE_CLIENTS_PYTHON`` names; ``make clients`` makes one that has them all.
``docs/coming-from-torchrun.md`` has a line for each.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate.testing import free_port

_NAMED = os.environ.get("QUORATE_CLIENTS_PYTHON", "")
PYTHON = _NAMED or sys.executable
#: A machine with two busy cores takes its time to import torch, its client and what that needs.
DEADLINE = 170.0
#: Each worker imports torch and its client.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * DEADLINE)]
needs_clients = pytest.mark.skipif(not _NAMED, reason="set QUORATE_CLIENTS_PYTHON to a Python with the clients")

RUN = ("-m", "quorate", "run", "--nproc-per-node=2")
#: How a training script is launched; ``exec`` is torch's own command line in it.
WAYS = {
    "run": RUN,
    "warm": (*RUN, "--start-method=warm", "--preload=torch"),
    "exec": ("-m", "quorate", "exec", "--", PYTHON, "-m", "torch.distributed.run", "--nproc-per-node=2"),
}
every_way = pytest.mark.parametrize("way", WAYS)
EXEC = ("-m", "quorate", "exec", "--", PYTHON)


def need(module: str) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    if subprocess.run([PYTHON, "-c", code], timeout=DEADLINE).returncode:
        pytest.skip(f"{module} is not installed; set QUORATE_CLIENTS_PYTHON to a Python that has it and quorate")


def run(cwd: Path, *command: str, **environment: str) -> list[str]:
    """Run a command of the clients' Python; return the sorted lines that its workers say, without the word LINE."""
    done = subprocess.run(
        [PYTHON, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    # torchx puts a prefix before each line, and writes them to stderr.
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    return sorted(line.partition("LINE ")[2] for line in lines if "LINE " in line)


def script(name: str) -> str:
    return str(Path(__file__).parent / "clients" / f"{name}.py")


# --- training programs ----------------------------------------------------------------------------------------------


@needs_clients
@every_way
def test_ddp_fsdp2_and_a_checkpoint_by_dcp(tmp_path: Path, way: str) -> None:
    assert run(tmp_path, *WAYS[way], script("torch_alone"), str(tmp_path / "checkpoint")) == ["True 0 2", "True 1 2"]


@needs_clients
@every_way
def test_transformers_trainer(tmp_path: Path, way: str) -> None:
    need("transformers")
    assert run(tmp_path, *WAYS[way], script("transformers_trainer"), str(tmp_path)) == ["True 0 2 2", "True 1 2 2"]


@needs_clients
@every_way
def test_lightning_trainer(tmp_path: Path, way: str) -> None:
    need("lightning")
    assert run(tmp_path, *WAYS[way], script("lightning_trainer")) == ["True 0 2 2", "True 1 2 2"]


@needs_clients
@every_way
def test_deepspeed(tmp_path: Path, way: str) -> None:
    need("deepspeed")
    assert run(tmp_path, *WAYS[way], script("deepspeed_engine")) == ["True 0 2 2", "True 1 2 2"]


@pytest.fixture
def lighthouse() -> Iterator[str]:
    need("torchft")
    code = (
        "import sys, torchft._torchft as t\n"
        "server = t.LighthouseServer(bind='[::]:0', min_replicas=2, join_timeout_ms=1000)\n"
        "print(server.address(), flush=True); sys.stdin.read(); server.shutdown()"
    )
    with subprocess.Popen([PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.communicate()


@needs_clients
def test_torchft_with_two_replica_groups(tmp_path: Path, lighthouse: str) -> None:
    """Each is a job of its own, whose store torchft only connects to."""
    program = script("torchft_group")
    command = [PYTHON, "-m", "quorate", "run", "--standalone", program]
    environment = {**os.environ, "TORCHFT_LIGHTHOUSE": lighthouse}
    groups = [
        subprocess.Popen(
            [*command, f"group-{number}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for number in (1, 3)
    ]
    try:
        outputs = [group.communicate(timeout=DEADLINE)[0] for group in groups]
    finally:
        for group in groups:
            group.terminate()
            group.wait()
    assert [group.returncode for group in groups] == [0, 0], outputs
    for number, output in zip((1, 3), outputs, strict=True):
        assert f"LINE True group-{number} 2 2 2.0" in output, outputs


@needs_clients
def test_a_task_of_ray_for_each_node(tmp_path: Path) -> None:
    need("ray")
    command = [script("ray_driver"), str(free_port()), script("torch_alone"), str(tmp_path / "checkpoint")]
    assert run(tmp_path, *command) == ["True 0 2", "True 1 2"]


# --- launchers ------------------------------------------------------------------------------------------------------


@every_way
def test_accelerate_launch(tmp_path: Path, way: str) -> None:
    need("accelerate")
    program = script("accelerate_step")
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    command = [*EXEC, *launcher, "--mixed_precision=no", "--dynamo_backend=no"] if way == "exec" else WAYS[way]
    assert run(tmp_path, *command, program) == ["True 0 2", "True 1 2"]


@needs_clients
def test_accelerate_on_two_machines(tmp_path: Path) -> None:
    """Accelerate's own flags, which are those of torchrun's static rendezvous."""
    need("accelerate")
    program, port = script("accelerate_step"), free_port()
    launcher = [*EXEC, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=2"]
    flags = ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_ip=127.0.0.1"]
    machines = [
        subprocess.Popen(
            [PYTHON, *launcher, *flags, f"--main_process_port={port}", f"--machine_rank={rank}", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [machine.communicate(timeout=DEADLINE)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()
            machine.wait()
    for rank, output in enumerate(outputs):
        assert f"LINE True {rank} 2" in output, outputs


@needs_clients
def test_accelerate_with_its_deepspeed_plugin(tmp_path: Path) -> None:
    need("accelerate")
    need("deepspeed")
    program = script("accelerate_with_deepspeed")
    config = tmp_path / "deepspeed.json"
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    config.write_text(json.dumps(settings))
    launcher = ["-m", "accelerate.commands.launch", "--use_deepspeed", f"--deepspeed_config_file={config}"]
    flags = ["--num_processes=2", "--num_machines=1", "--dynamo_backend=no"]
    lines = run(tmp_path, *EXEC, *launcher, *flags, program, DS_ACCELERATOR="cpu")
    assert lines == ["True 0 2", "True 1 2"]


def test_accelerate_notebook_launcher(tmp_path: Path) -> None:
    need("accelerate")
    assert run(tmp_path, *EXEC, script("notebook")) == ["True 0 word", "True 1 word"]


def test_lightning_fabric_run(tmp_path: Path) -> None:
    need("lightning")
    need("click")
    command = [
        "-m",
        "lightning.fabric.cli",
        "--accelerator=cpu",
        "--devices=2",
        "--strategy=ddp",
        script("fabric_barrier"),
    ]
    assert run(tmp_path, *EXEC, *command) == ["True 0 2", "True 1 2"]


@needs_clients
def test_torchtunes_command_line(tmp_path: Path) -> None:
    need("torchtune")
    (tmp_path / "recipe.yaml").write_text("word: here\n")
    command = ["-c", "import sys; from torchtune._cli.tune import main; sys.exit(main())", "run", "--nproc_per_node=2"]
    recipes = os.path.dirname(script("torchtune_recipe"))  # it makes a module's name of the path
    words = ["torchtune_recipe.py", "--config", "recipe.yaml"]
    lines = run(tmp_path, *EXEC, *command, *words, PYTHONPATH=recipes)
    assert lines == ["True 0 2 here", "True 1 2 here"]


@needs_clients
def test_torchx_with_its_component_ddp(tmp_path: Path) -> None:
    need("torchx")
    program = script("rank_alone")
    command = ["-c", "from torchx.cli.main import main; main()", "run", "--scheduler=local_cwd", "dist.ddp", "-j=1x2"]
    lines = run(Path(program).parent, *EXEC, *command, f"--script={Path(program).name}")
    assert lines == ["True 0", "True 1"]


@needs_clients
def test_a_launcher_that_is_a_copy_of_torchs_agent_runs_as_it_is(tmp_path: Path) -> None:
    """NVRx has a launcher of its own, which calls none of torch's; ``quorate exec`` leaves it alone."""
    need("nvidia_resiliency_ext")
    program = script("rank_alone")
    command = ["-c", "from nvidia_resiliency_ext.fault_tolerance.launcher import main; main()"]
    assert run(tmp_path, *EXEC, *command, "--nproc-per-node=2", program) == ["False 0", "False 1"]


def test_torch_distributed_launch(tmp_path: Path) -> None:
    program = script("arguments")
    lines = run(tmp_path, *EXEC, "-m", "torch.distributed.launch", "--nproc_per_node=2", program, "a")
    assert lines == [f"True --local-rank={rank} a" for rank in (0, 1)]


def test_the_page_names_a_test_for_each_program() -> None:
    page = (Path(__file__).parents[3] / "docs" / "coming-from-torchrun.md").read_text(encoding="utf-8")
    tables = page.partition("| program | how it was run")[2].partition("The last column")[0]
    rows = [line.rsplit("|", 2)[1] for line in tables.splitlines() if line.startswith("| ") and "---" not in line]
    code = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_torchrun_*.py"))
    named = [re.findall(r"`(\w+)`", row) for row in rows if row != " test "]
    assert len(named) == 18
    assert [names for names in named if not names or any(f"def test_{name}(" not in code for name in names)] == []
