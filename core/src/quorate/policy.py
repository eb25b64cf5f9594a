"""The core's own answers to ``decide_cause`` and ``decide_restart``.

What does not live here: how restarts are counted (``agent/_round_end``; ``rendezvous/_sealing`` takes one off again).
"""

from __future__ import annotations

import os

from .diagnosis import cause_of_exit
from .records import Cause, FailureRecord, RestartBudget, RestartDecision, Verdict

__all__ = ["DO_NOT_RESTART", "PREEMPTED_CODE", "default_cause", "default_restart"]

#: The exit code by which a worker says that starting it again cannot help, and that of ``quorate run`` then.
DO_NOT_RESTART = 79
#: The exit code by which a worker says that the job should be started again later: it has saved what it has.
PREEMPTED_CODE = 75

_FIRST_DELAY_SECONDS = 1.0
_LONGEST_DELAY_SECONDS = 60.0


def default_cause(failure: FailureRecord) -> Cause:
    """Classify a failure from its exit code and recorded error alone."""
    if failure.cause is Cause.START_FAILED:
        return Cause.START_FAILED
    if failure.exit_code == PREEMPTED_CODE:
        return Cause.PREEMPTED
    return cause_of_exit(failure.exit_code, failure.error_data)


def default_restart(failure: FailureRecord, budget: RestartBudget) -> RestartDecision:
    """Restart while the budget lasts; a worker that could not be started is not tried again.

    A rank that fails again by the same cause gets a pause first, twice as long each time and half of it random: the
    reason may need time to go away, and all jobs should not retry in the same moment.
    """
    if failure.cause is Cause.START_FAILED:
        return RestartDecision(Verdict.FAILED, "a worker could not be started; starting it again cannot help")
    if failure.cause is Cause.PREEMPTED:
        return RestartDecision(
            Verdict.STOPPED, f"the worker asks that the job be started again (exit code {PREEMPTED_CODE})"
        )
    if failure.exit_code == DO_NOT_RESTART:
        reason = f"the worker asked not to be started again (exit code {DO_NOT_RESTART})"
        return RestartDecision(Verdict.FAILED, reason, is_final=True)
    if budget.remaining > 0:
        delay = _back_off(budget.repeats_of(failure))
        return RestartDecision(Verdict.RESTART, f"restart {budget.used + 1} of {budget.allowed}", delay)
    if budget.allowed == 0:
        return RestartDecision(Verdict.FAILED, "no restarts are allowed (--max-restarts=0)")
    used = "the only restart is used up" if budget.allowed == 1 else f"all {budget.allowed} restarts are used up"
    return RestartDecision(Verdict.FAILED, f"{used} (--max-restarts={budget.allowed})")


def _back_off(repeats: int) -> float:
    """Return the seconds to wait before the next round, after ``repeats`` rounds that ended like this one."""
    if repeats == 0:
        return 0.0
    fraction = int.from_bytes(os.urandom(4), "big") / 2**32
    return min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(repeats - 1, 16)) * (0.5 + fraction / 2)
