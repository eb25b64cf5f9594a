"""Released programs that call torch's launchers, run by ``quorate exec``.

They are looked for in the Python that ``QUORATE_CLIENTS_PYTHON`` names (default: the one that runs the tests), which
must have quorate too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = os.environ.get("QUORATE_CLIENTS_PYTHON") or sys.executable
pytestmark = pytest.mark.slow  # each imports torch several times


def need(module: str) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    if subprocess.run([PYTHON, "-c", code], timeout=60).returncode:
        pytest.skip(f"{module} is not installed; set QUORATE_CLIENTS_PYTHON to a Python that has it and quorate")


def execute(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "quorate", "exec", "--", PYTHON, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(folder: Path, text: str) -> str:
    path = folder / "program.py"
    path.write_text(text)
    return str(path)


def test_accelerate_launch(tmp_path: Path) -> None:
    need("accelerate")
    program = script(
        tmp_path,
        "import os, sys; from accelerate import Accelerator; a = Accelerator(cpu=True)\n"
        "sys.stdout.write(f\"{'QUORATE_ROUND' in os.environ} {a.process_index} {a.num_processes}\\n\")\n"
        "a.wait_for_everyone(); a.end_training()",
    )
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    output = execute(*command, "--mixed_precision=no", "--dynamo_backend=no", program, cwd=tmp_path)
    assert sorted(output.splitlines()) == ["True 0 2", "True 1 2"]


def test_accelerate_notebook_launcher(tmp_path: Path) -> None:
    need("accelerate")
    program = script(
        tmp_path,
        "import os, sys\n"
        "from accelerate import notebook_launcher\n"
        "def train(word):\n"
        "    sys.stdout.write(f\"{'QUORATE_ROUND' in os.environ} {os.environ['RANK']} {word}\\n\")\n"
        "notebook_launcher(train, ('word',), num_processes=2, use_port='0')\n",
    )
    output = execute(program, cwd=tmp_path)
    assert {"True 0 word", "True 1 word"} <= set(output.splitlines())


def test_lightning_fabric_run(tmp_path: Path) -> None:
    need("lightning")
    need("click")
    program = script(
        tmp_path,
        "import os, sys; from lightning.fabric import Fabric; f = Fabric()\n"
        "sys.stdout.write(f\"{'QUORATE_ROUND' in os.environ} {f.global_rank} {f.world_size}\\n\"); f.barrier()",
    )
    command = ["-m", "lightning.fabric.cli", "--accelerator=cpu", "--devices=2", "--strategy=ddp", program]
    output = execute(*command, cwd=tmp_path)
    assert {"True 0 2", "True 1 2"} <= set(output.splitlines())


def test_torch_distributed_launch(tmp_path: Path) -> None:
    program = script(
        tmp_path, "import os, sys; sys.stdout.write(f\"{'QUORATE_ROUND' in os.environ} {sys.argv[1:]}\\n\")"
    )
    output = execute("-m", "torch.distributed.launch", "--nproc_per_node=2", program, "a", cwd=tmp_path)
    assert sorted(output.splitlines()) == [f"True ['--local-rank={rank}', 'a']" for rank in (0, 1)]
