"""The start method ``warm``: workers are forked from a process that has already imported what they need.

Decided here: what the template is, when there is a new one, and what each worker gets.  What does not live here: the
template process (:mod:`._template`).
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, final

from quorate.errors import StartError, UsageError
from quorate.memory_policy import can_prefer_node, preferring_call
from quorate.notices import warn
from quorate.proc import forget, hold
from quorate.records import WorkerLaunch
from quorate.starter import ProcessContext, StarterRequest

from ._commands import find_command, working_folder
from ._context import LocalContext
from ._exec import checked_words
from ._group import start_group
from ._python import PythonCommand, is_python, parse_python_command
from ._results import STALL_SECONDS
from ._spare import Spare, WorkerSource, make_spare
from ._streams import Output
from ._template import Template
from ._workers import ChildProcess

#: How often a template that dies between two starts is replaced.
_MOST_REBUILDS = 3
#: Variables that an interpreter or a library reads when it starts, so that a worker cannot have another value than its
#: template.  (What is read later, such as CUDA_VISIBLE_DEVICES, is not among them.)
_READ_AT_IMPORT = (
    *("PYTHON", "LC_", "LANG", "LD_", "TZ", "GLIBC_", "MALLOC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_"),
    *("BLIS_", "NUMEXPR_", "TORCH_", "PYTORCH_"),
)


@final
class _TemplateKey(NamedTuple):
    """What a template is made for; a launch that asks for another one needs another template."""

    python: str
    options: tuple[str, ...]
    kind: str
    target: str
    variables: tuple[tuple[str, str], ...]


@final
class _Program(NamedTuple):
    """What one worker runs: the words of the command, and their meaning."""

    words: list[str]
    command: PythonCommand
    is_call: bool

    def template_key(self, environment: Mapping[str, str]) -> _TemplateKey:
        variables = sorted(item for item in environment.items() if item[0].startswith(_READ_AT_IMPORT))
        command = self.command
        return _TemplateKey(self.words[0], command.options, command.kind, command.target, tuple(variables))


@final
class WarmStarter:
    """Starts Python commands and functions; implements :class:`quorate.starter.PreparingStarter`.

    The modules are those of the setting ``preload``.  Without :meth:`prepare` the first start waits for the template.
    A spare is forked ``rest_seconds`` after a worker has become live: it and its like have the processors to themselves
    first.  Imports may take ``import_timeout_seconds``.  A worker whose result stops on its way for
    ``stall_seconds`` is killed.
    """

    def __init__(
        self,
        request: StarterRequest,
        rest_seconds: float = 0.5,
        import_timeout_seconds: int = 600,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._request, self._rest_seconds, self._stall_seconds = request, rest_seconds, stall_seconds
        self._import_timeout_seconds = import_timeout_seconds
        self._modules: tuple[str, ...] = tuple(request.settings.get("preload", ()))
        self._template: Template | None = None
        self._key: _TemplateKey | None = None
        self._rebuild: Callable[[], Template] | None = None
        self._rebuilds = 0
        self._spare: Spare | None = None
        self._epoll: select.epoll | None = None

    # --- the interface of the core --------------------------------------------------------------------------------

    def prepare(
        self, entrypoint: str | Callable[..., Any], args: Sequence[Any], environment: Mapping[str, str]
    ) -> None:
        """See :class:`quorate.starter.PreparingStarter`, as for the methods below."""
        self._epoll = select.epoll()
        hold(self._epoll.fileno(), self._epoll.close)
        try:
            program = _program(entrypoint, args, environment, 0)
        except StartError as error:
            raise UsageError(str(error)) from None
        self._build(program, environment)

    def fileno(self) -> int:
        assert self._epoll is not None
        return self._epoll.fileno()

    def is_ready(self) -> bool:
        template = self._template
        if template is None:
            return True
        was_ready = template.is_ready
        template.look()
        if template.problem and was_ready and self._rebuild is not None and self._rebuilds < _MOST_REBUILDS:
            warn(f"{template.problem}; a new one takes its place")
            self._rebuilds += 1
            try:
                self._replace(self._rebuild)
            except StartError:
                return True  # start() tries again, and reports it
            return False
        if template.problem:
            self._unwatch()  # start() reports it
        if template.is_idle:
            template.is_idle = False
            self._spare = self._spare or make_spare(template)
        return template.is_ready or bool(template.problem)

    def start(self, launches: Sequence[WorkerLaunch]) -> ProcessContext:
        programs = [_program(it.entrypoint, it.args, it.environment, it.local_rank) for it in launches]
        self._find_template(programs, launches)
        template = self._template
        assert template is not None
        if not template.is_ready:
            self._drop()
            raise StartError(f"no worker can be started warm: {template.problem}{_remedy(template.problem)}")

        def launch_all(context: LocalContext) -> None:
            address = (
                context.expect_results(self._stall_seconds) if any(program.is_call for program in programs) else b""
            )
            spare, self._spare = self._spare, None
            with WorkerSource(template, spare) as source:
                for launch, program in zip(launches, programs, strict=True):
                    context.launch(launch, partial(_start, source=source, program=program, address=address))

        context = start_group(self._request, launch_all)
        context.live.on_live = partial(template.rest, self._rest_seconds)
        self._rebuilds = 0
        return context

    def close(self) -> None:
        self._drop()
        if self._epoll is not None:
            forget(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    # --- the template ---------------------------------------------------------------------------------------------

    def _find_template(self, programs: Sequence[_Program], launches: Sequence[WorkerLaunch]) -> None:
        """Have the right template, and wait until its imports are done or have failed."""
        first = programs[0].template_key(launches[0].environment)
        for program, launch in zip(programs, launches, strict=True):
            if program.template_key(launch.environment) != first:
                raise StartError(
                    _difference(first, program.template_key(launch.environment), launch.local_rank),
                    local_rank=launch.local_rank,
                )
        if self._template is not None:
            self._template.look()
        if self._template is None or self._key != first or (self._template.is_ready and self._template.problem):
            common = set(launches[0].environment.items()).intersection(*(it.environment.items() for it in launches))
            self._build(programs[0], dict(common))
        assert self._template is not None
        self._template.wait()

    def _build(self, program: _Program, environment: Mapping[str, str]) -> None:
        modules, path = self._modules, []
        if program.is_call:
            modules, path = (*modules, "quorate_process_local._warm_call"), list(sys.path)
        key, head = program.template_key(environment), program.command.head
        fixed = dict(environment)

        def build() -> Template:
            return Template(key.python, program.words, fixed, modules, head, path, self._import_timeout_seconds)

        self._key, self._rebuild = key, build
        self._replace(build)

    def _replace(self, build: Callable[[], Template]) -> None:
        self._drop()
        try:
            self._template = build()
        except OSError as error:
            raise StartError(f"the template process cannot be started: {error.strerror or error}") from error
        if self._epoll is not None:
            self._epoll.register(self._template.channel.fileno(), select.EPOLLIN)

    def _unwatch(self) -> None:
        if self._epoll is not None and self._template is not None:
            with suppress(OSError, ValueError):  # it is no longer watched
                self._epoll.unregister(self._template.channel.fileno())

    def _drop(self) -> None:
        if self._spare is not None:
            self._spare.end()
            self._spare = None
        if self._template is not None:
            self._unwatch()
            self._template.close()
            self._template = None


def _program(
    entrypoint: str | Callable[..., Any], args: Sequence[Any], environment: Mapping[str, str], local_rank: int
) -> _Program:
    """Return what a worker is to run.

    Raises:
        StartError: it is not a Python program, or its interpreter cannot be found.
    """
    if not isinstance(entrypoint, str):
        return _understood(_for_functions().command(), local_rank, is_call=True)
    words = checked_words(entrypoint, args, "warm", local_rank)
    path = find_command(words[0], environment, local_rank)
    if not is_python(path):
        raise StartError(
            f"the start method warm runs Python programs, but the command is {words[0]}; "
            "leave out --no-python and name the script, or use --start-method=exec",
            local_rank=local_rank,
        )
    return _understood([path, *words[1:]], local_rank, is_call=False)


def _understood(words: list[str], local_rank: int, is_call: bool) -> _Program:
    try:
        return _Program(words, parse_python_command(words[1:]), is_call)
    except ValueError as error:
        raise StartError(
            f"the start method warm cannot run this command: {error}; use --start-method=exec", local_rank=local_rank
        ) from None


def _start(
    launch: WorkerLaunch,
    environment: dict[str, str],
    output: Output,
    source: WorkerSource,
    program: _Program,
    address: bytes,
) -> ChildProcess:
    streams = [(source, target) for source, target in ((output.stdout, 1), (output.stderr, 2)) if source >= 0]
    order: dict[str, Any] = {
        "streams": [target for _, target in streams],
        "environment": environment,
        "words": program.words,
        "argv": program.command.argv,
        "folder": working_folder("warm", launch.local_rank),
        "cpus": None if launch.cpus is None else sorted(launch.cpus),
        "memory_call": _memory_call(launch.memory_node),
    }
    descriptors = [source for source, _ in streams]
    if program.is_call:
        started: ChildProcess = _for_functions().start_function(source, launch, order, descriptors, address)
        return started
    return ChildProcess(source.fork(order, descriptors, launch.local_rank))


def _memory_call(node: int | None) -> tuple[int, int, list[int]] | None:
    """Return the system call that has a worker prefer ``node``'s memory, ``None`` if there is nothing to call."""
    return preferring_call(node) if node is not None and can_prefer_node() else None


def _for_functions() -> Any:
    from . import _warm_functions  # with multiprocessing, which commands do not need

    return _warm_functions


def _difference(first: _TemplateKey, other: _TemplateKey, local_rank: int) -> str:
    ours, theirs = dict(first.variables), dict(other.variables)
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    what = f"another value of {', '.join(names)}" if names else f"another command, {other.kind} {other.target},"
    return (
        f"local rank {local_rank} is to have {what} than the worker before it, but all are copies of one process "
        "that has read it already; give all the same, or use --start-method=exec"
    )


def _remedy(problem: str) -> str:
    if problem.startswith("importing"):
        return "; correct --preload"
    if problem.startswith("an import"):
        return "; leave that module out of --preload, or use --start-method=exec"
    return ""
