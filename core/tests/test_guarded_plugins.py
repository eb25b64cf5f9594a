"""What plugins make and answer outside of hooks: handlers, bootstraps, logs specs, programs, clusters.

Each wrong answer becomes an error that names the plugin, and no answer is believed that a job could not use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from core.tests.odd_answers import DEEDS
from core.tests.test_hook_answers import interrupts_are_the_plugins_own

from quorate import LogsDest, LogsSpecs, PluginHost, RendezvousBackend, hookimpl
from quorate.agent._guarded_handler import guarded, records_by_itself
from quorate.agent._guarded_logs import guarded_logs
from quorate.backends import get_rendezvous_handler
from quorate.cli._exit import code_of, exit_code_of
from quorate.clusters import ClusterJob
from quorate.cut_off import WhenCutOff
from quorate.errors import PluginError, RendezvousClosedError, UsageError
from quorate.records import Assignment, NodeRecord, RoundEnd
from quorate.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters, RendezvousStoreInfo
from quorate.rendezvous._port import make_bootstrap

__all__ = ["interrupts_are_the_plugins_own"]

PLACE = RendezvousStoreInfo("127.0.0.1", 29500)
ASSIGNMENT = Assignment(0, "a", "trainer", 1, 0, 1, 0, 1, 0, 1, "127.0.0.1", 1)


class Handler(RendezvousHandler):
    """Answers with what ``answers`` has under a method's name."""

    def __init__(self, **answers: Callable[[], Any]) -> None:
        self.answers = answers

    def _answer(self, name: str, usual: Any) -> Any:
        return self.answers[name]() if name in self.answers else usual

    def get_backend(self) -> str:
        return self._answer("get_backend", "odd")

    def next_rendezvous(self) -> RendezvousInfo:
        return self._answer("next_rendezvous", RendezvousInfo(None, 0, 1, PLACE, ASSIGNMENT))

    def is_closed(self) -> bool:
        return self._answer("is_closed", False)

    def set_closed(self) -> None:
        self._answer("set_closed", None)

    def num_nodes_waiting(self) -> int:
        return self._answer("num_nodes_waiting", 0)

    def get_run_id(self) -> str:
        return self._answer("get_run_id", "job")

    def shutdown(self) -> bool:
        return self._answer("shutdown", True)

    @property
    def use_agent_store(self) -> bool:
        return self._answer("use_agent_store", False)

    @property
    def loss_timeout(self) -> float:
        return self._answer("loss_timeout", 3.0)

    @property
    def when_cut_off(self) -> WhenCutOff:
        return self._answer("when_cut_off", WhenCutOff.RUN)

    def is_cut_off(self) -> bool:
        return self._answer("is_cut_off", False)

    def wait_for_change(self, timeout: float) -> RoundEnd | None:
        return self._answer("wait_for_change", None)

    def end_round(self, end: RoundEnd) -> None:
        self._answer("end_round", None)

    def measure_latency(self, timeout: float) -> float | None:
        return self._answer("measure_latency", 0.1)


ASKED: Mapping[str, Callable[[RendezvousHandler], Any]] = {
    "next_rendezvous": lambda handler: handler.next_rendezvous(),
    "is_closed": lambda handler: handler.is_closed(),
    "num_nodes_waiting": lambda handler: handler.num_nodes_waiting(),
    "get_run_id": lambda handler: handler.get_run_id(),
    "use_agent_store": lambda handler: handler.use_agent_store,
    "loss_timeout": lambda handler: handler.loss_timeout,
    "when_cut_off": lambda handler: handler.when_cut_off,
    "is_cut_off": lambda handler: handler.is_cut_off(),
    "wait_for_change": lambda handler: handler.wait_for_change(1.0),
    "measure_latency": lambda handler: handler.measure_latency(1.0),
}
#: What these answers may be, although they are odd.
RIGHT = {
    ("get_run_id", "a string"),
    ("loss_timeout", "a number"),
    ("measure_latency", "a number"),
    ("num_nodes_waiting", "a number"),
}


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("method", ASKED)
def test_a_handlers_wrong_answer_is_an_error_that_names_its_backend(method: str, deed: str) -> None:
    if (method, deed) in RIGHT:
        return
    handler = guarded(Handler(**{method: DEEDS[deed]}))
    with pytest.raises(PluginError, match=f"^rendezvous backend 'odd': {method}"):
        ASKED[method](handler)


def test_a_handler_that_answers_rightly_is_not_changed() -> None:
    handler = guarded(Handler(get_backend=lambda: 3))
    handler.prepare(NodeRecord("a", "trainer", 1))
    assert handler.next_rendezvous().assignment == ASSIGNMENT
    assert [ask(handler) for ask in list(ASKED.values())[1:]] == [
        False,
        0,
        "job",
        False,
        3.0,
        WhenCutOff.RUN,
        False,
        None,
        0.1,
    ]
    assert (records_by_itself(handler, "end_round"), records_by_itself(handler, "report_done")) == (True, False)

    def leave() -> Any:
        raise RendezvousClosedError("over")

    with pytest.raises(RendezvousClosedError, match="over"):
        guarded(Handler(wait_for_change=leave)).wait_for_change(1.0)


@pytest.mark.parametrize(
    "info",
    [
        RendezvousInfo(None, 1, 1, PLACE),
        RendezvousInfo(None, -1, 1, PLACE),
        RendezvousInfo(None, 0, 0, PLACE),
        RendezvousInfo(None, 0, 10**9, PLACE),
        RendezvousInfo(None, True, 2, PLACE),
        RendezvousInfo(None, 0, 1, RendezvousStoreInfo("a\n", 1)),
        RendezvousInfo(None, 0, 1, RendezvousStoreInfo("a", 65536)),
        RendezvousInfo(None, 0, 1, RendezvousStoreInfo("a", -1)),
        RendezvousInfo(None, 0, 2, PLACE, ASSIGNMENT),
        RendezvousInfo(None, 0, 1, PLACE, Assignment(0, "a", "trainer", 40, 0, 1, 0, 40, 0, 40, "127.0.0.1", 1)),
        RendezvousInfo(None, 0, 1, PLACE, Assignment(0, "a", "trainer", 1, 0, 1, 5, 1, 0, 1, "127.0.0.1", 1)),
        # A role of the wrong type, as a store may give it.
        RendezvousInfo(None, 0, 1, PLACE, Assignment(0, "a", 3, 1, 0, 1, 0, 1, 0, 1, "127.0.0.1", 1)),  # type: ignore[arg-type]
    ],
)
def test_a_place_that_no_round_has_is_refused(info: RendezvousInfo) -> None:
    handler = guarded(Handler(next_rendezvous=lambda: info))
    handler.prepare(NodeRecord("a", "trainer", 1))
    with pytest.raises(PluginError, match=r"'odd': next_rendezvous\(\) answered"):
        handler.next_rendezvous()


# --- logs specs -------------------------------------------------------------------------------------------------------


class Logs(LogsSpecs):
    def __init__(self, answer: Callable[[], Any]) -> None:
        super().__init__()
        self.answer = answer

    def reify(self, envs: Mapping[int, Mapping[str, str]]) -> LogsDest:
        dest: LogsDest = self.answer()
        return dest

    def keep_run_dir(self, run_id: str) -> str | None:
        folder: str | None = self.answer()
        return folder


@pytest.mark.parametrize("deed", DEEDS)
def test_logs_specs_that_answer_wrongly_are_named(deed: str) -> None:
    specs = guarded_logs(Logs(DEEDS[deed]))
    with pytest.raises(PluginError, match=r"^logs specs Logs: reify\(\) (answered|raised)"):
        specs.reify({})
    if deed != "a string":
        with pytest.raises(PluginError, match=r"^logs specs Logs: keep_run_dir\(\) (answered|raised)"):
            specs.keep_run_dir("job")


@pytest.mark.parametrize("field", ["stdouts", "tee_stderrs", "error_files", "filtered_stdout"])
@pytest.mark.parametrize("value", [3, "x\0", None, {0: 3}, {"0": "a"}, {0: "\ud800"}])
def test_a_destination_that_no_file_can_have_is_refused(field: str, value: Any) -> None:
    with pytest.raises(PluginError, match="logs specs Logs"):
        guarded_logs(Logs(lambda: LogsDest(**{field: value}))).reify({})
    good = LogsDest({0: "a"}, error_files={0: "b"})
    assert guarded_logs(Logs(lambda: good)).reify({}) == good


# --- bootstraps, programs, clusters, handlers -------------------------------------------------------------------------


class PortHolder:
    shares_store = False

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer

    def reserve(self, address: str, port: int = 0) -> int:
        taken: int = self.answer()
        return taken

    def activate(self) -> None:
        self.answer()

    def release(self) -> None: ...


@pytest.mark.parametrize("deed", DEEDS)
def test_a_bootstrap_that_answers_wrongly_is_named(deed: str) -> None:
    with pytest.raises(PluginError, match=r"^rendezvous backend 'odd': bootstrap"):
        make_bootstrap("odd", DEEDS[deed]).reserve("127.0.0.1")
    if deed != "a number":
        with pytest.raises(PluginError, match=r"^rendezvous backend 'odd': bootstrap\.reserve"):
            make_bootstrap("odd", lambda: PortHolder(DEEDS[deed])).reserve("127.0.0.1")


@pytest.mark.parametrize("deed", DEEDS)
def test_a_port_that_cannot_be_given_back_is_reported(deed: str, capsys: pytest.CaptureFixture[str]) -> None:
    holder = PortHolder(lambda: 1)
    holder.release = DEEDS[deed]  # type: ignore[method-assign]
    make_bootstrap("odd", lambda: holder).release()
    said = capsys.readouterr().err
    assert said == "" or said.startswith("quorate: warning: rendezvous backend 'odd': bootstrap.release() raised ")


def test_a_port_that_is_taken_stays_an_error_of_the_system() -> None:
    def refuse() -> Any:
        raise OSError(98, "Address already in use")

    with pytest.raises(OSError, match="already in use"):
        make_bootstrap("odd", lambda: PortHolder(refuse)).reserve("127.0.0.1", 1)


@pytest.mark.parametrize("deed", sorted(set(DEEDS) - {"SystemExit", "a number"}))
def test_a_program_of_a_plugin_that_ends_oddly_is_named(deed: str) -> None:
    with pytest.raises(PluginError, match=r"^the command 'x' of y (answered|raised)"):
        exit_code_of("the command 'x' of y", lambda argv: DEEDS[deed](), [])


@pytest.mark.parametrize(
    ("answer", "code"), [(SystemExit(3), 3), (SystemExit(), 0), (SystemExit("words"), 1), (0, 0), (255, 255)]
)
def test_sys_exit_is_a_programs_answer(answer: Any, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def program(argv: Any) -> Any:
        if isinstance(answer, SystemExit):
            raise answer
        return answer

    assert exit_code_of("x", program, []) == code
    assert capsys.readouterr().err == ("words\n" if code == 1 else "")
    for wrong in (256, -1, None, 10**400):
        with pytest.raises(PluginError, match="which is not an exit code"):
            exit_code_of("x", lambda argv, wrong=wrong: wrong, [])
    with pytest.raises(UsageError):
        exit_code_of("x", lambda argv: RendezvousParameters("", "", "", 1, 1), [])


@pytest.mark.parametrize("deed", DEEDS)
def test_the_time_that_a_cluster_has_left_never_raises(deed: str) -> None:
    left = ClusterJob(scheduler="S", seconds_left=DEEDS[deed]).time_left()
    assert left == (3.0 if deed == "a number" else None)


@pytest.mark.parametrize("deed", DEEDS)
def test_what_a_backend_opens_is_a_handler(deed: str) -> None:
    class Plugin:
        @hookimpl
        def quorate_register_rendezvous(self) -> Iterator[Any]:
            yield RendezvousBackend("odd", "opens what is not a handler", open_handler=lambda parameters: DEEDS[deed]())

    host = PluginHost([], (), [("odd", Plugin())])
    with pytest.raises(PluginError, match=r"^rendezvous backend 'odd' (answered|raised)") as caught:
        get_rendezvous_handler(RendezvousParameters("odd", "x:1", "job", 1, 1), host)
    assert code_of(caught.value) == 4
