"""``StoreRendezvousHandler``: the full rendezvous interface on top of any store.

What does not live here: opening an installed backend by name (:mod:`quorate.backends`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import final

from attrs import evolve

from .._isolation import problem_of
from ..clock import monotonic, seconds_until
from ..cut_off import WhenCutOff
from ..errors import FailureKind, RendezvousClosedError, RendezvousError, StoreUnavailableError, UsageError
from ..job_token import job_token_of
from ..net import host_name, is_local_name
from ..notices import warn
from ..reach import advertised_address, names_local_host
from ..records import Cause, NodeRecord, RoundEnd, Verdict
from ..text import without_passwords
from ._api import (
    DERIVED_SETTING,
    Decisions,
    RendezvousBackend,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from ._driver import Driver
from ._host_end import end_with_store, linger_seconds, why_no_round
from ._incarnation import JobEntry
from ._observed_job import count_in_line
from ._parameters import for_short_visit, settings_of, with_waiting_callback
from ._port import PORT_RANGE_SETTING, Bootstrap, make_bootstrap, reserve_master_port
from ._protocol import (
    Done,
    End,
    JobClosed,
    Join,
    Key,
    Leave,
    Left,
    Output,
    Phase,
    RendezvousFailed,
    RoundEnded,
    RoundJoined,
    StandingBy,
    StopWaiting,
    Waiting,
)
from ._refusals import refused
from ._reporting import Reporting
from ._signed import protect
from ._state import cut_off_at
from ._store import PortLendingStore, Store, ends_with_host, open_checked
from ._strangers import StrangerWatch

_CLOSED_HERE = "the rendezvous handler of this node was closed; make a new one for another job"


@final
class StoreRendezvousHandler(RendezvousHandler):
    """One node of a job whose nodes meet in a store.

    Call either the blocking methods, or :meth:`subscribe` and then :meth:`request_join`, but not both.
    """

    def __init__(self, parameters: RendezvousParameters, backend: RendezvousBackend, decisions: Decisions) -> None:
        open_store = backend.open_store
        if open_store is None:
            raise UsageError(f"rendezvous backend {backend.name!r} opens no store")
        self._given, self._backend, self._open_store, self._decisions = parameters, backend, open_store, decisions
        self._subscriber: Callable[[Output], None] | None = None
        self._begin()

    def _begin(self) -> None:
        """Set all that belongs to one life of the job."""
        parameters, decisions = self._given, self._decisions
        self._parameters = parameters
        settings = settings_of(parameters, not self._backend.hosted_by_job)
        self._linger_timeout = parameters.get_as_float("linger_timeout", 5.0)
        self._close_timeout = settings.timeouts.close_timeout
        self._node = NodeRecord(os.urandom(16).hex(), "default", 1, host=host_name(), plugin_digest=decisions.digest())
        self._bootstrap: Bootstrap | None = None
        self._outputs: list[Output] = []
        self._changed = threading.Condition()
        self._started = self._shut_down = self._is_closed_here = self._has_entered = False
        self._departed = threading.Event()  # this node has left, or there is nothing left to leave
        self._final: JobClosed | RendezvousFailed | None = None
        self._token, self._process_id = job_token_of(parameters.config), os.getpid()
        self._plain_store: Store | None = None
        self._leaving = threading.Event()
        self._entry = JobEntry(
            parameters.run_id,
            not parameters.get_as_bool(DERIVED_SETTING, False),
            settings.timeouts.lease_timeout,
            bool(parameters.get_as_bool("keep", False)),
            self._leaving.wait,
            self._report_waiting,
            ends_with_job=self._backend.hosted_by_job,
        )
        self._why_not_entered = ""
        self._reporting = Reporting(
            without_passwords(parameters.endpoint),
            parameters.max_nodes > 1,
            lambda report: bool(decisions.decide_or(True, "waiting", report)),
            lambda report: self._pass_on(Waiting(report)),
            lambda sentence: self._driver.post(StopWaiting(sentence)),
        )
        self._strangers = StrangerWatch(parameters.run_id, self._token, warn)
        self._driver = Driver(
            settings,
            self._open,
            lambda nodes, previous: decisions.decide("ranks", nodes, previous),
            lambda summary, waiting: decisions.decide_or(False, "rescale", summary, waiting),
            self._on_output,
            self._look_for_strangers if parameters.max_nodes > 1 else None,
            refused=warn,
        )

    def _open(self) -> Store:
        plain = self._plain_store
        if plain is None:
            self._why_not_entered = ""
            parameters = with_waiting_callback(self._parameters, self._report_waiting)
            plain = self._plain_store = open_checked(self._backend.name, self._open_store, parameters)
        try:
            store = self._entry.enter(protect(plain, self._parameters.run_id, self._token, warn), self._node)
            self._why_not_entered = ""
        except BaseException as error:
            # What did not answer is asked again, and closed by shutdown().
            if self._leaving.is_set() or not isinstance(error, StoreUnavailableError):
                self._plain_store = None
                plain.close()
            raise
        self._has_entered = True
        return store

    def _report_waiting(self, sentence: str) -> None:
        """Have people know why this node cannot join yet; called on the store's thread."""
        self._why_not_entered = sentence
        self._on_output(StandingBy(sentence))

    def _look_for_strangers(self) -> None:
        assert self._plain_store is not None
        state = self._driver.state
        self._strangers.look(self._plain_store, state.phase, state.round_number)

    # --- the agent's side: nothing blocks ---------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[Output], None]) -> None:
        """Call ``callback`` with every output, on the rendezvous thread; it must not block."""
        self._subscriber = callback

    def request_join(self, node: NodeRecord) -> None:
        """Ask for a place in the next round; ``node``'s address and port are filled in here.

        Once the job has ended, another one of the same name begins; not after :meth:`shutdown` or :meth:`set_closed`.
        """
        if self._shut_down or self._is_closed_here:
            self._pass_on(JobClosed(self._end_here(_CLOSED_HERE)))
            return
        if self._process_id != os.getpid():
            self._begin()  # the threads are the parent process's
        elif self._final is not None:
            self._begin_anew()
        if not self._started:
            self._started = True
            self._driver.start()
        self._release()
        if isinstance(self._plain_store, PortLendingStore):
            self._plain_store.take_port_back()
        bootstrap = make_bootstrap(self._backend.name, self._backend.bootstrap)
        address = advertised_address(self._parameters.local_addr, self._parameters.endpoint)
        outside = self._outside_address(address)
        port = reserve_master_port(
            bootstrap,
            "" if outside else address,
            self._parameters.get(PORT_RANGE_SETTING),
            self._parameters.endpoint if self._backend.hosted_by_job else "",
        )
        self._bootstrap = bootstrap
        if self._shut_down:  # by another thread, while the endpoint's name was looked up
            self._release()
            return
        self._node = evolve(
            self._complete(node),
            address=address,
            outside_address=outside,
            port=port,
            shares_store=bootstrap.shares_store,
        )
        self._driver.post(Join(self._node))

    def _outside_address(self, address: str) -> str:
        """Return this machine's address for nodes elsewhere, if ``address`` is loopback and there may be some.

        The endpoint may be this machine's own name, which many systems resolve to a loopback address; any address; or
        nothing that has an address.  If it says ``localhost``, no node of another machine comes here.
        """
        parameters = self._parameters
        if parameters.max_nodes == 1 or parameters.local_addr or not is_local_name(address):
            return ""
        if names_local_host(parameters.endpoint):
            return ""
        from ..addresses import outside_address  # with ipaddress, which most jobs do not need

        return outside_address()

    def _complete(self, node: NodeRecord) -> NodeRecord:
        """Return ``node`` with what the rendezvous knows of it."""
        return evolve(
            node,
            host=node.host or host_name(),
            plugin_digest=self._decisions.digest(),
            min_nodes=self._parameters.min_nodes,
            max_nodes=self._parameters.max_nodes,
        )

    def end_run(self) -> None:
        """Release threads and connections once the job has ended, unless other nodes may still need the store here."""
        is_host = self._plain_store is not None and ends_with_host(self._plain_store)
        if self._final is not None and not self._is_closed_here and not (is_host and self._parameters.max_nodes > 1):
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.shutdown()
        self._begin()

    def request_decline(self, node: NodeRecord) -> None:
        """Report to the waiting nodes why this node does not join (``node.declined``), if the store answers soon."""
        if self._parameters.max_nodes == 1:
            return
        if not self._started:
            self._started = True
            self._parameters = for_short_visit(self._parameters)
            self._driver.start()
        self._release()
        self._node = self._complete(node)
        self._driver.post(Join(self._node))

    def end_round(self, end: RoundEnd) -> None:
        self._driver.post(End(end_with_store(end, self._plain_store, self._driver.state.assignment)))

    def report_done(self) -> None:
        self._driver.post(Done())

    def request_leave(self) -> None:
        """Leave the job; the output ``Left`` follows."""
        self._leaving.set()
        self._driver.post(Leave())

    def _on_output(self, output: Output) -> None:
        if isinstance(output, Waiting):
            report = output.report
            if self._why_not_entered and not self._has_entered:
                left = report.left_seconds
                ends = "" if left is None else f"; this node gives up in {left:.0f} s"
                reason = f"waiting for {report.waited_seconds:.0f} s: {self._why_not_entered}{ends}"
                report = evolve(report, reason=reason)
            self._reporting.complete(report, self._has_entered or bool(self._why_not_entered))
            return
        if isinstance(output, RoundJoined) and output.assignment.group_rank == 0 and self._bootstrap is not None:
            try:
                if isinstance(self._plain_store, PortLendingStore):
                    self._plain_store.lend_port()
                self._bootstrap.activate()
            except BaseException as error:
                output = RendezvousFailed(
                    FailureKind.STATE, f"the bootstrap port could not be opened: {problem_of(error)}"
                )
        output = self._explained(output)
        if isinstance(output, (JobClosed, RendezvousFailed)):
            self._final = output
        if isinstance(output, RendezvousFailed) and output.told_round is not None:
            self._driver.tell_refusal(output.told_round, refused(self._node, output.problem))
        refusal = why_no_round(output, self._plain_store, self._node)
        if refusal:
            self._driver.refuse_round(refusal)
        if isinstance(output, (JobClosed, RendezvousFailed, Left)):
            self._departed.set()
        self._pass_on(output)

    def _pass_on(self, output: Output) -> None:
        with self._changed:
            self._outputs.append(output)
            self._changed.notify_all()
        if self._subscriber is not None:
            self._outputs.clear()
            self._subscriber(output)

    def _explained(self, output: Output) -> Output:
        """Return ``output`` with what only this object knows: the job's name, and why it is not entered yet."""
        if isinstance(output, RendezvousFailed) and output.kind is FailureKind.TIMEOUT and self._why_not_entered:
            return RendezvousFailed(output.kind, f"{output.problem.partition(': ')[0]}: {self._why_not_entered}")
        if isinstance(output, StandingBy) and output.reason != self._why_not_entered:
            first = self._entry.begun_by
            began = f", which a node on {first.name} began" if first is not None else ""
            return StandingBy(
                f"{output.reason}. It is a round of the job {self._parameters.run_id!r}{began}. If that is an older "
                "job that should end, stop its agents there (SIGTERM); to run beside it, give this job another "
                "--rdzv-id"
            )
        return output

    # --- the blocking interface -------------------------------------------------------------------------------------

    def prepare(self, node: NodeRecord) -> None:
        self._node = node

    def get_backend(self) -> str:
        return self._backend.name

    def get_run_id(self) -> str:
        return self._parameters.run_id

    @property
    def use_agent_store(self) -> bool:
        return self._bootstrap is not None and self._bootstrap.shares_store

    @property
    def loss_timeout(self) -> float:
        return self._driver.state.settings.timeouts.loss_timeout

    @property
    def when_cut_off(self) -> WhenCutOff:
        return self._driver.state.settings.when_cut_off

    def is_cut_off(self) -> bool:
        state = self._driver.state
        due_at = cut_off_at(state)
        return state.standing.is_cut_off or (due_at is not None and due_at <= monotonic())

    def next_rendezvous(self) -> RendezvousInfo:
        if self._driver.state.phase is Phase.RUNNING and self._process_id == os.getpid():
            self.end_round(self._end_here(f"{self._node.name} joins again", Cause.NODE_LEFT, Verdict.RESCALE))
            self._next_output((RoundEnded, JobClosed, RendezvousFailed), None)
        if self._final is None and not self._shut_down:
            self.request_join(self._node)
        output = self._next_output((RoundJoined, JobClosed, RendezvousFailed), None)
        if isinstance(output, RoundJoined):
            assignment = output.assignment
            return RendezvousInfo(
                None,
                assignment.group_rank,
                assignment.group_world_size,
                RendezvousStoreInfo(assignment.master_addr, assignment.master_port),
                assignment,
            )
        raise _error_of(output)

    def wait_for_change(self, timeout: float) -> RoundEnd | None:
        output = self._next_output((RoundEnded, JobClosed, RendezvousFailed), timeout)
        if output is None:
            return None
        if isinstance(output, (RoundEnded, JobClosed)):
            return output.end
        raise _error_of(output)

    def _next_output(self, kinds: tuple[type[Output], ...], timeout: float | None) -> Output | None:
        deadline = None if timeout is None else monotonic() + timeout
        with self._changed:
            while True:
                while self._outputs:
                    output = self._outputs.pop(0)
                    if isinstance(output, kinds):
                        return output
                if self._final is not None:
                    return self._final
                if self._shut_down:
                    raise RendezvousClosedError("this node was shut down")
                if deadline is not None and deadline <= monotonic():
                    return None
                self._changed.wait(None if deadline is None else seconds_until(deadline))

    def is_closed(self) -> bool:
        """Return whether the job has ended, as far as this node knows."""
        return isinstance(self._final, JobClosed)

    def set_closed(self) -> None:
        """End the job for all nodes; where this node is in no round, for this node alone."""
        self._is_closed_here = True
        if self._driver.state.phase is Phase.RUNNING:
            self.end_round(self._end_here(f"closed by {self._node.name}"))
        elif self._final is None:
            if self._started:
                self.request_leave()
            self._final = JobClosed(self._end_here(_CLOSED_HERE))
            self._pass_on(self._final)

    def _end_here(self, reason: str, cause: Cause = Cause.STOPPED, verdict: Verdict = Verdict.STOPPED) -> RoundEnd:
        number = self._driver.state.round_number
        return RoundEnd(number, cause, verdict, reason, self._node.node_id, self._node.host)

    def num_nodes_waiting(self) -> int:
        """Return how many nodes are in line for the next round.  Raises StoreUnavailableError without an answer."""
        state = self._driver.state
        if state.phase is not Phase.RUNNING:
            return 0
        return self._driver.query(lambda store: count_in_line(store, state.round_number + 1), self._close_timeout)

    def measure_latency(self, timeout: float) -> float | None:
        if not self._started or self._shut_down or self._driver.state.phase in (Phase.IDLE, Phase.CLOSED, Phase.LEFT):
            return None
        started_at = monotonic()
        self._driver.query(lambda store: store.get([Key.ROUND]), timeout)
        return monotonic() - started_at

    def shutdown(self) -> bool:
        if self._shut_down:
            return True
        self._leaving.set()
        if self._started and not self._departed.is_set():
            self.request_leave()
            self._departed.wait(self._close_timeout)
        with self._changed:
            self._shut_down = True
            self._changed.notify_all()
        if self._subscriber is not None and self._final is None:
            self._subscriber(JobClosed(self._end_here(_CLOSED_HERE)))
        if self._started:
            linger = linger_seconds(self._driver.state, self._final, self._linger_timeout)
            self._driver.close(self._close_timeout, linger)
        self._reporting.close(self._close_timeout)
        if not self._has_entered and self._plain_store is not None:
            self._plain_store.close()
        self._release()
        return True

    def _release(self) -> None:
        if self._bootstrap is not None:
            self._bootstrap.release()
            self._bootstrap = None


def _error_of(output: Output | None) -> RendezvousError:
    """Return the error that a blocking method raises for an output after which no round comes."""
    if isinstance(output, JobClosed):
        return RendezvousClosedError(output.end.reason, succeeded=output.end.verdict is Verdict.SUCCEEDED)
    assert isinstance(output, RendezvousFailed)
    return output.kind.error(output.problem)
