"""The core's own answers to ``decide_cause`` and ``decide_restart``."""

from __future__ import annotations

from .records import Cause, FailureRecord, RestartBudget, RestartDecision, Verdict

__all__ = ["default_cause", "default_restart"]


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
    """Restart while the budget lasts; a worker that could not be started is not worth a second try."""
    if failure.cause is Cause.START_FAILED:
        return RestartDecision(Verdict.FAILED, "a worker could not be started; starting it again cannot help")
    if budget.remaining > 0:
        return RestartDecision(Verdict.RESTART, f"restart {budget.used + 1} of {budget.allowed}")
    if budget.allowed == 0:
        return RestartDecision(Verdict.FAILED, "no restarts are allowed (--max-restarts=0)")
    return RestartDecision(Verdict.FAILED, f"all {budget.allowed} restarts are used")
