"""The start method warm: the template, what it refuses, and that its workers are ours like any other.

That programs notice no difference is proved in ``test_warm_like_exec.py``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import StartError
from quorate.proc import is_alive
from quorate_process_local import _template
from quorate_process_local._python import is_python, parse_python_command
from quorate_process_local._template_site import quorate_template

from .conftest import DEADLINE_SECONDS, Ear, Group, Make, launch, wait_for_end
from .warm_workers import outputs, python, refused, run, wait_until_ready, write_module

# --- what workers share, and what not -------------------------------------------------------------------------------


def test_modules_are_imported_once_for_all_workers_of_all_rounds(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    write_module(tmp_path, monkeypatch, "counted", f"open({str(count)!r}, 'a').write('once ')")
    starter = make("counted", "json.decoder")
    code = "import sys; print('counted' in sys.modules, 'json.decoder' in sys.modules); import counted"
    for _ in range(2):
        assert outputs(starter, code, tmp_path, 3) == ["True True\n"] * 3
    assert count.read_text() == "once "


def test_workers_do_not_share_their_chance(make: Make, tmp_path: Path) -> None:
    code = """
import multiprocessing, numpy, os, random, secrets, tempfile, uuid
print(random.random(), numpy.random.random(), uuid.uuid4(), secrets.token_hex(), tempfile.mktemp(),
      multiprocessing.current_process().authkey.hex(), sep="\\n")
"""
    starter = make("multiprocessing", "numpy.random", "random", "secrets", "tempfile", "uuid")
    # NumPy's threads (one per core, as nothing is said about them) end for the fork, and are no reason to refuse.
    seen = [text.splitlines() for _ in range(2) for text in outputs(starter, code, tmp_path)]
    for values in zip(*seen, strict=True):
        assert len(set(values)) == 4, values


def test_torch_draws_its_own_numbers_too_and_computes(make: Make, tmp_path: Path) -> None:
    code = """
import torch
print(torch.initial_seed(), torch.rand(2).tolist(), torch.get_num_threads(), sep="\\n")
a = torch.ones(64, 64, requires_grad=True)
(a @ a).sum().backward()
print(a.grad.sum().item())
"""
    first, second = (text.splitlines() for text in outputs(make("torch"), code, tmp_path))
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert first[2:] == second[2:]
    assert first[3] == str(64.0**3 * 2)


def test_what_an_import_sets_in_the_environment_is_there_unless_the_worker_has_its_own(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import os\nfor name in 'ABC': os.environ.setdefault(name, 'import')\nos.environ['D'] = 'import'"
    write_module(tmp_path, monkeypatch, "setting", text)
    monkeypatch.setenv("A", "given")
    starter = make("setting")
    code = "import os; print(*(os.environ.get(name) for name in 'ABCD'), 'QUORATE_TEMPLATE' in os.environ)"
    out = tmp_path / "out"
    worker = python(code, stdout=str(out), environment={"B": "mine"})
    starter.prepare(worker.entrypoint, worker.args, dict(os.environ))
    assert run(starter, [worker])[0].exit_code == 0
    assert out.read_text() == "given mine import import False\n"


@pytest.mark.parametrize("choice", ["", "gc.set_threshold(5, 6, 7)", "gc.disable()"])
def test_the_collector_is_as_the_imports_left_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    """During the imports it collects seldom, of which nothing may be left."""
    state = "gc.isenabled(), gc.get_threshold()[:2]"
    write_module(tmp_path, monkeypatch, "choosing", f"import gc\nduring = gc.get_threshold()[0]\n{choice}")
    expected = subprocess.check_output([sys.executable, "-c", f"import gc; {choice}\nprint({state})"], text=True)
    starter = make("choosing")
    out = tmp_path / "out"
    code = f"import choosing, gc; print({state})\nprint(choosing.during > 10 * max(gc.get_threshold()[0], 2_000))"
    worker = python(code, stdout=str(out), environment={})
    starter.prepare(worker.entrypoint, worker.args, dict(os.environ))
    assert run(starter, [worker])[0].exit_code == 0
    assert out.read_text() == expected + "True\n"


def test_arguments_environment_and_output_are_each_workers_own(make: Make, tmp_path: Path) -> None:
    """The template was started with the macro in its arguments; what a worker gets is what it was launched with."""
    starter = make()
    code = "import os, sys; print(sys.argv, sys.orig_argv[-1], os.environ['WHO'])"
    starter.prepare(sys.executable, ["-u", "-c", code, "${local_rank}"], dict(os.environ))
    wait_until_ready(starter)
    template = starter._template
    paths = [tmp_path / f"{rank}.out" for rank in range(2)]
    launches = [
        python(code, str(rank), rank=rank, stdout=str(path), environment={"WHO": f"rank {rank}"})
        for rank, path in enumerate(paths)
    ]
    run(starter, launches)
    assert starter._template is template
    assert [path.read_text() for path in paths] == [f"['-c', '{rank}'] {rank} rank {rank}\n" for rank in range(2)]


def test_workers_may_have_their_own_device(make: Make, tmp_path: Path) -> None:
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    paths = [tmp_path / f"{rank}.out" for rank in range(2)]
    launches = [
        python(code, rank=rank, stdout=str(path), environment={"CUDA_VISIBLE_DEVICES": str(rank)})
        for rank, path in enumerate(paths)
    ]
    run(make(), launches)
    assert [path.read_text() for path in paths] == ["0\n", "1\n"]


# --- the template's life --------------------------------------------------------------------------------------------


def test_workers_outlive_their_template_which_is_replaced(
    make: Make, ear: Ear, capfd: pytest.CaptureFixture[str]
) -> None:
    starter = make("json")
    door = f"{ear.path}.door"
    os.mkfifo(door)
    code = f"import os\nopen({str(ear.path)!r}, 'w').write('up\\n')\nopen({door!r}).read()\nraise SystemExit(6)"
    starter.prepare(sys.executable, ["-u", "-c", code], dict(os.environ))
    wait_until_ready(starter)
    group = Group(starter.start([python(code)]))
    try:
        assert ear.words(1) == ["up"]
        first = starter._template
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        wait_for_end([first.pid])
        assert not starter.is_ready()  # it has noticed, and the new one has yet to import
        wait_until_ready(starter)
        assert starter._template is not first
        assert "ended by signal 9 while it waited" in capfd.readouterr().err
        open(door, "w").close()
        (event,) = group.run()
        assert (event.exit_code, event.stopped, event.problem) == (6, False, "")
    finally:
        group.close()
    assert run(starter, [python("raise SystemExit(7)")])[0].exit_code == 7


def test_a_template_survives_what_a_scheduler_sends_to_all_processes_and_its_workers_do_not(
    make: Make, ear: Ear, capfd: pytest.CaptureFixture[str]
) -> None:
    starter = make("json")
    code = f"import signal\nopen({str(ear.path)!r}, 'w').write('up\\n')\nsignal.pause()"
    starter.prepare(sys.executable, ["-u", "-c", code], dict(os.environ))
    wait_until_ready(starter)
    template = starter._template
    assert template is not None
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        os.kill(template.pid, number)
    group = Group(starter.start([python(code)]))
    try:
        assert ear.words(1) == ["up"]
        assert starter._template is template
        (pid,) = group.context.pids().values()
        os.kill(pid, signal.SIGUSR1)
        (event,) = group.run()
        assert event.exit_code == -signal.SIGUSR1
    finally:
        group.close()
    assert "ended by signal" not in capfd.readouterr().err


def test_what_an_import_starts_hides_nothing_and_ends_with_the_template(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    note = tmp_path / "pid"
    write_module(tmp_path, monkeypatch, "starting", f"import os\nos.system('sleep 1000 & echo $! >{note}')")
    starter = make("starting")
    starter.prepare(sys.executable, ["-c", "pass"], dict(os.environ))
    wait_until_ready(starter)
    pid, first = int(note.read_text()), starter._template
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    wait_for_end([first.pid])
    assert not starter.is_ready()
    wait_for_end([pid])
    capfd.readouterr()


@pytest.mark.parametrize("victim", ["template", "intermediate"])
def test_what_dies_while_workers_are_forked_leaves_no_worker(
    make: Make, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    starter = make()
    fork = _template.Forking.fork
    pids: list[int] = []

    def fork_and_kill(self: _template.Forking, *arguments: Any) -> int:
        pids.append(fork(self, *arguments))
        dying = self._template.pid if victim == "template" else self._intermediate
        os.kill(dying, signal.SIGKILL)
        wait_for_end([dying])
        return pids[-1]

    monkeypatch.setattr(_template.Forking, "fork", fork_and_kill)
    words = refused(starter, *(python("import signal; signal.pause()", rank=i) for i in range(3)))
    assert "process" in words
    assert pids
    wait_for_end(pids)
    monkeypatch.undo()
    assert run(starter, [python("raise SystemExit(7)")])[0].exit_code == 7


def test_a_template_never_runs_the_program_itself(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even if its own code fails, here for a module of the user's that hides one of the standard library."""
    write_module(tmp_path, monkeypatch, "socket", "raise RuntimeError('not that one')")
    assert "ended by exit code 1" in refused(make(), python("print('ran')"))
    seen = capfd.readouterr()
    assert "ran" not in seen.out
    assert "not that one" in seen.err


def test_starting_is_not_waited_for(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template imports while the agent does something else, and closing it needs no patience."""
    write_module(tmp_path, monkeypatch, "hanging", "import signal\nsignal.pause()")
    starter = make("hanging")
    starter.prepare(sys.executable, ["-c", "pass"], dict(os.environ))
    assert not starter.is_ready()
    template = starter._template
    assert template is not None
    starter.close()
    assert not is_alive(template.pid)


def test_this_process_adopts_workers_but_no_strangers() -> None:
    number = ctypes.c_int(5)
    ctypes.CDLL(None).prctl(37, ctypes.byref(number), 0, 0, 0)  # PR_GET_CHILD_SUBREAPER
    assert number.value == 0


# --- workers are ours -----------------------------------------------------------------------------------------------


def test_a_warm_worker_is_a_child_that_is_stopped_like_any_other(make: Make, ear: Ear) -> None:
    code = f"""
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
open({str(ear.path)!r}, "w").write(f"{{os.getpid()}} {{os.getppid()}}\\n")
signal.sigwait([signal.SIGTERM])
sys.exit(42)
"""
    group = Group(make().start([python(code)]))
    try:
        pid, parent = map(int, ear.words(2))
        assert parent == os.getpid()
        assert group.context.pids() == {0: pid}
        group.stop()
        assert [(event.exit_code, event.stopped) for event in group.run()] == [(42, True)]
    finally:
        group.close()


def test_what_a_warm_worker_leaves_is_swept_even_if_it_never_execs(make: Make, ear: Ear) -> None:
    """A fork in a session of its own: found by the marker that the worker writes where the kernel shows it."""
    code = f"""
import os, signal
if os.fork() == 0:
    os.setsid()
    open({str(ear.path)!r}, "w").write(f"{{os.getpid()}}\\n")
    signal.pause()
"""
    group = Group(make().start([python(code)]))
    try:
        (pid,) = map(int, ear.words(1))
        group.run()
        assert not is_alive(pid)
    finally:
        group.close()


def test_everything_dies_with_the_agent(ear: Ear) -> None:
    """However it dies: workers, what they started, and the template."""
    code = f"""
import os, signal
child = os.fork()
if child == 0:
    os.setsid()
else:
    open({str(ear.path)!r}, "w").write(f"{{os.getpid()}} {{child}}\\n")
signal.pause()
"""
    agent = subprocess.Popen(
        [sys.executable, "-c", _AGENT, code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        pids = [int(word) for word in ear.words(2)]
        assert agent.stdout is not None
        pids.append(int(agent.stdout.readline()))
        assert all(map(is_alive, pids))
        agent.kill()
        agent.wait()
        wait_for_end(pids)
    finally:
        agent.kill()
        agent.communicate()


_AGENT = """
import os, select, sys
from quorate.records import WorkerLaunch
from quorate.starter import StarterRequest
from quorate_process_local._warm import WarmStarter
starter = WarmStarter(StarterRequest("warm", "inner", 30.0, {"preload": ["json"]}))
context = starter.start([WorkerLaunch(0, 0, "t", sys.executable, ("-c", sys.argv[1]), dict(os.environ), "")])
print(starter._template.pid, flush=True)
select.select([], [], [])
"""


# --- command lines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("-u train.py -x 1", (("-u",), "script", "train.py", ("-x", "1"))),
        ("-uOm pkg.mod a", (("-uO",), "module", "pkg.mod", ("a",))),
        ("-mpkg a", ((), "module", "pkg", ("a",))),
        ("-W error -Xdev -bb -c code -c", (("-W", "error", "-X", "dev", "-bb"), "code", "code", ("-c",))),
        ("--check-hash-based-pycs never t.py", (("--check-hash-based-pycs", "never"), "script", "t.py", ())),
    ],
)
def test_a_python_command_is_taken_apart(line: str, parts: tuple[Any, ...]) -> None:
    assert tuple(parse_python_command(line.split())) == parts


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/usr/bin/python3.12", True), ("python3-dbg", True), ("/opt/python", True), ("/bin/sh", False),
     ("pythonista", False), (sys.executable, True)],
)  # fmt: skip
def test_an_interpreter_is_known_by_its_name(path: str, answer: bool) -> None:
    assert is_python(path) is answer


def test_the_interpreter_of_a_template_need_not_have_quorate(make: Make, tmp_path: Path) -> None:
    """Its half of the protocol is in the standard library's terms: it runs isolated, and in a bare installation."""
    site = os.path.dirname(quorate_template.__file__)
    script = (
        f"import sys; sys.path.append({site!r}); import quorate_template\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('quorate', 'attr', 'attrs')]"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True, timeout=DEADLINE_SECONDS)
    bare = os.path.realpath(sys.executable)
    assert subprocess.run([bare, "-c", "import quorate"], capture_output=True, check=False).returncode != 0
    program = tmp_path / "program.py"
    program.write_text(f"import json\nopen({str(tmp_path / 'ran')!r}, 'w').write('ran')")
    starter = make("json")
    group = Group(starter.start([launch(0, bare, str(program))]))
    try:
        assert [event.exit_code for event in group.run()] == [0]
    finally:
        group.close()
    assert (tmp_path / "ran").read_text() == "ran"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xff\xff\xff", "it is longer than"),
        (b"\0\0\x27\x10" + b"[" * 10_000, "it is nested too deeply"),
        (b"\0\0\0\x02[]", "it is not an object"),
        (b"\0\0\0\x02{x", "Expecting property name"),
        (b"\0\0\0\x02\xff\xff", "decode"),
    ],
)
def test_what_an_import_writes_into_the_channel_is_no_message(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, words: str
) -> None:
    text = (
        "import os, stat\n"
        "for name in os.listdir('/proc/self/fd'):\n"
        "    try:\n"
        "        if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):\n"
        f"            os.write(int(name), {data!r})\n"
        "    except OSError:\n"
        "        pass\n"
    )
    write_module(tmp_path, monkeypatch, "meddling", text)
    with pytest.raises(StartError, match=f"what is not a message .*{words}"):
        make("meddling").start([launch(0, sys.executable, "-c", "")])
