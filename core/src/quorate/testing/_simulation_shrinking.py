"""Makes a random scenario shorter, piece by piece, while it still breaks the same law.

What does not live here: scenarios, and how they are played (``_simulation_scenario``).
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from ._simulation import Faults, Law, SimulationError
from ._simulation_scenario import Scenario, differences, play


def shrink(scenario: Scenario, law: Law, most_tries: int = 400) -> Scenario:
    """Return a scenario, as short as could be found in ``most_tries``, that breaks the same law."""
    tries = 0

    def still_breaks(candidate: Scenario) -> bool:
        nonlocal tries
        tries += 1
        try:
            play(candidate)
        except SimulationError as error:
            return error.law is law
        return False

    found = True
    while found and tries < most_tries:
        found = False
        for candidate in _simpler(scenario):
            if tries < most_tries and still_breaks(candidate):
                scenario, found = candidate, True
                break
    return scenario


def _simpler(scenario: Scenario) -> Iterator[Scenario]:
    actions = scenario.actions
    for number in range(len(actions)):
        yield evolve(scenario, actions=actions[:number] + actions[number + 1 :])
    plain, plain_faults = Scenario(0, 1, 1, 1), Faults()
    for name in (
        "connects_workers",
        "interrupt_seconds",
        "drift",
        "stop_seconds",
        "busy",
        "live",
        "local_world_size",
        "majority",
    ):
        if getattr(scenario, name) != getattr(plain, name):
            yield evolve(scenario, **{name: getattr(plain, name)})
    for name, _ in differences(scenario.faults, plain_faults):
        yield evolve(scenario, faults=evolve(scenario.faults, **{name: getattr(plain_faults, name)}))
    if scenario.size > scenario.min_nodes:
        yield evolve(scenario, size=scenario.size - 1)
    for number, action in enumerate(actions):
        for simpler in (evolve(action, at=round(action.at)), evolve(action, seconds=round(action.seconds) or 1)):
            if simpler != action:
                yield evolve(scenario, actions=(*actions[:number], simpler, *actions[number + 1 :]))
