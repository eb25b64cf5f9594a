"""The start method warm: the template, what it refuses, and that its workers are ours like any other.

That programs notice no difference is proved in ``test_warm_like_exec.py``.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import StartError, UsageError
from quorate.records import WorkerLaunch
from quorate.starter import PreparingStarter, StarterRequest
from quorate_process_local import _template, _warm
from quorate_process_local._python import is_python, parse_python_command
from quorate_process_local._template_site import quorate_template
from quorate_process_local._template_site.quorate_template import why_not_forkable

from . import process_local_functions as functions
from .conftest import DEADLINE_SECONDS, Ear, Group, is_running, launch, wait_for_end

Make = Callable[..., _warm.WarmStarter]


@pytest.fixture
def make() -> Iterator[Make]:
    """``make(*modules)`` → a warm starter with these imported ahead; it and its groups end with the test."""
    starters: list[_warm.WarmStarter] = []

    def begin(*modules: str) -> _warm.WarmStarter:
        starter = _warm.WarmStarter(StarterRequest("warm", "token", DEADLINE_SECONDS, {"preload": modules}))
        assert isinstance(starter, PreparingStarter)
        starters.append(starter)
        return starter

    yield begin
    for starter in starters:
        starter.close()


def python(code: str, *arguments: str, rank: int = 0, **others: Any) -> WorkerLaunch:
    return launch(rank, sys.executable, "-u", "-c", code, *arguments, **others)


def run(starter: _warm.WarmStarter, launches: Sequence[WorkerLaunch]) -> dict[int, Any]:
    """Run a group to its end; local rank → exit record."""
    group = Group(starter.start(launches))
    try:
        return {event.local_rank: event for event in group.run()}
    finally:
        group.close()


def outputs(starter: _warm.WarmStarter, code: str, folder: Path, ranks: int = 2) -> list[str]:
    """Run ``code`` in ``ranks`` workers; what each printed."""
    paths = [folder / f"{rank}.out" for rank in range(ranks)]
    for path in paths:
        path.unlink(missing_ok=True)
    exits = run(starter, [python(code, rank=rank, stdout=str(path)) for rank, path in enumerate(paths)])
    assert [exits[rank].exit_code for rank in range(ranks)] == [0] * ranks
    return [path.read_text() for path in paths]


def wait_until_ready(starter: _warm.WarmStarter) -> None:
    """Wait as the agent does."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not starter.is_ready():
        ready, _, _ = select.select([starter], [], [], max(0.0, end - time.monotonic()))
        assert ready, "the template is not ready"


def write_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


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


# --- functions ------------------------------------------------------------------------------------------------------


def test_a_function_gets_its_arguments_and_returns_its_value(make: Make) -> None:
    starter = make("json")
    for turn in range(2):
        exits = run(starter, [launch(rank, functions.echo, turn, rank, b"x" * 100_000) for rank in range(2)])
        assert [exits[rank].return_value for rank in range(2)] == [(turn, rank, b"x" * 100_000) for rank in range(2)]
        assert [exits[rank].exit_code for rank in range(2)] == [0, 0]


def test_a_functions_exception_is_recorded_and_printed(make: Make, tmp_path: Path) -> None:
    err, error_file = tmp_path / "err", tmp_path / "error.json"
    (event,) = run(make(), [launch(0, functions.boom, stderr=str(err), error_file=str(error_file))]).values()
    assert event.exit_code == 1
    assert err.read_text().startswith("Traceback (most recent call last):\n")
    assert err.read_text().endswith("ValueError: a reason\n")
    assert "_template" not in err.read_text()
    assert "a reason" in error_file.read_text()


@pytest.mark.parametrize("code", [0, 3])
def test_a_function_may_exit(make: Make, code: int) -> None:
    assert run(make(), [launch(0, functions.leave, code)])[0].exit_code == code


def test_a_function_may_share_a_queue_with_the_agent(make: Make) -> None:
    queue: Any = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        assert run(make(), [launch(0, functions.put_simply, queue, "words")])[0].exit_code == 0
        assert queue.get() == "words"
    finally:
        queue.close()


def test_a_function_finds_what_every_worker_finds(make: Make, tmp_path: Path) -> None:
    worker = launch(0, functions.surroundings, stdout=str(tmp_path / "out"), environment={"A": "b"})
    found = run(make(), [worker])[0].return_value
    assert found["sid"]
    assert found["env"] == {"A": "b", "QUORATE_AGENT_TOKEN": "token", "NOT_GIVEN": None}
    assert (found["mask"], found["term"], found["int"], found["daemon"]) == (set(), True, True, False)
    assert found["parent"]
    assert (tmp_path / "out").read_text() == "to stdout\n"


def test_a_function_passes_no_descriptor_on(make: Make) -> None:
    queue: Any = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        assert run(make(), [launch(0, functions.inheritable, queue)])[0].return_value == [0, 1, 2]
    finally:
        queue.close()


def test_a_function_that_cannot_be_passed_is_refused(make: Make) -> None:
    with pytest.raises(StartError, match="top level"):
        make().start([launch(0, lambda: None)])


# --- what is refused ------------------------------------------------------------------------------------------------


def refused(starter: _warm.WarmStarter, *launches: WorkerLaunch) -> str:
    with pytest.raises(StartError) as caught:
        starter.start(launches or [python("print('never')")])
    return str(caught.value)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sh", "-c", "true"], "runs Python programs"),
        ([sys.executable], "standard input"),
        ([sys.executable, "-u", "-"], "standard input"),
        ([sys.executable, "-i", "script.py"], "-i"),
        ([sys.executable, "-uS", "script.py"], "option -S"),
        ([sys.executable, "-I", "script.py"], "option -I"),
        ([sys.executable, "--version"], "--version"),
        (["no-such-python"], "not found"),
    ],
    ids=lambda it: " ".join(it)[-16:] if isinstance(it, list) else "",
)
def test_what_is_no_python_program_is_refused_before_anything_starts(
    make: Make, command: list[str], words: str
) -> None:
    """One clear sentence, and it is the caller's mistake."""
    starter = make()
    with pytest.raises(UsageError, match=words):
        starter.prepare(command[0], command[1:], dict(os.environ))
    assert words in refused(make(), launch(0, *command))


def test_an_import_that_fails_says_why(make: Make) -> None:
    assert "importing no_such_module failed: ModuleNotFoundError" in refused(make("json", "no_such_module"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), name='mine', daemon=True).start()",
         "1 thread(s) running (mine)"),
        ("import os\nos._exit(3)", "ended by exit code 3 before it had imported troubled"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "ended by signal 9"),
        ("import os\nos.closerange(3, 100)\nimport signal\nsignal.pause()", "closed its channel to the agent"),
        ("raise SystemExit('no')", "importing troubled failed: SystemExit: no"),
        ("import sys, types\nsys.modules['torch'] = torch = types.ModuleType('torch')\n"
         "torch.cuda = types.SimpleNamespace(is_initialized=lambda: True)", "initialised CUDA"),
    ],
    ids=["thread", "exit", "killed", "closed", "system-exit", "cuda"],
)  # fmt: skip
def test_an_import_that_leaves_what_cannot_be_copied_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    write_module(tmp_path, monkeypatch, "troubled", text)
    assert words in refused(make("troubled"))


def test_an_open_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "readlink", lambda path: "/dev/nvidia0")
    assert "/dev/nvidia0" in why_not_forkable()


def test_an_import_that_hangs_is_given_up(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, monkeypatch, "hanging", "import signal\nsignal.pause()")
    monkeypatch.setattr(_template, "IMPORT_TIMEOUT_SECONDS", 1)
    assert "importing hanging took longer than 1 s" in refused(make("hanging"))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (python("pass", rank=1, environment={"OMP_NUM_THREADS": "7"}), "another value of OMP_NUM_THREADS"),
        (python("other", rank=1), "another command, code other"),
    ],
    ids=["variable", "program"],
)
def test_workers_that_cannot_be_copies_of_one_process_are_refused(make: Make, second: WorkerLaunch, words: str) -> None:
    assert words in refused(make(), python("pass"), second)


def test_a_template_that_no_longer_fits_is_replaced(make: Make, tmp_path: Path) -> None:
    starter = make()
    code = "import os, sys; print(os.environ['OMP_NUM_THREADS'], sys.flags.hash_randomization)"
    out = tmp_path / "out"
    for threads, seed in (("3", "0"), ("4", "random")):
        out.unlink(missing_ok=True)
        surroundings = {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        run(starter, [python(code, stdout=str(out), environment=surroundings)])
        assert out.read_text() == f"{threads} {int(seed == 'random')}\n"


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
    assert not is_running(template.pid)


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
        assert not is_running(pid)
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
        assert all(map(is_running, pids))
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
