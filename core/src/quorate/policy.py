"""The core's own answers to ``decide_cause`` and ``decide_restart``."""

from __future__ import annotations

from .records import Cause, FailureRecord, RestartBudget, RestartDecision, Verdict

__all__ = ["default_cause", "default_restart"]

_FIRST_DELAY_SECONDS = 1.0
_LONGEST_DELAY_SECONDS = 60.0


def default_cause(failure: FailureRecord) -> Cause:
    """Classify a failure from its exit code and recorded error alone."""
    if failure.cause is Cause.START_FAILED:
        return Cause.START_FAILED
    if failure.exit_code < 0:
        return Cause.SIGNAL
    if failure.error_data:
        return Cause.EXCEPTION
    return Cause.EXIT_CODE


def default_restart(failure: FailureRecord, budget: RestartBudget) -> RestartDecision:
    """Restart while the budget lasts; a worker that could not be started is not worth a second try.

    A rank that fails again in the way it failed before gets a pause first, twice as long each time and half of it
    random: what it trips over may need a moment to heal, and should not be hit by every job at once.
    """
    if failure.cause is Cause.START_FAILED:
        return RestartDecision(Verdict.FAILED, "a worker could not be started; starting it again cannot help")
    if budget.remaining > 0:
        delay = _back_off(budget.repeats_of(failure))
        return RestartDecision(Verdict.RESTART, f"restart {budget.used + 1} of {budget.allowed}", delay)
    if budget.allowed == 0:
        return RestartDecision(Verdict.FAILED, "no restarts are allowed (--max-restarts=0)")
    used = "the one restart is used" if budget.allowed == 1 else f"all {budget.allowed} restarts are used"
    return RestartDecision(Verdict.FAILED, f"{used} (--max-restarts={budget.allowed})")


def _back_off(repeats: int) -> float:
    """Return the seconds to wait before the next round, after ``repeats`` rounds that ended like this one."""
    if repeats == 0:
        return 0.0
    import random  # only a failure that repeats pays for it

    return min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(repeats - 1, 16)) * random.uniform(0.5, 1.0)
