"""The demonstration: trains on two agents, kills a worker and then a whole agent, and proves that training went on.

Run it with ``make demo``.  It starts two agents of ``quorate run`` on loopback, each in place of one machine, kills a
worker and an agent with SIGKILL, and exits with 0 only if everything that it prints was checked.  What does not live
here: the training (``train.py``), and how processes are watched (``stage.py``).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from stage import Agent, DemoError, Message, Stage, hold_port, kill_and_wait

EPOCHS = 60
HOLD = "hold"  # keeps the training from its end until the replacement is there, however slow the machine is
KILL_WORKER_AFTER = 8  # epochs
KILL_AGENT_AFTER = 20
WORKERS = 2  # per agent
ENOUGH_ACCURACY = 0.95
TIMEOUT_SECONDS = 120.0  # for each wait; long, because machines can be slow
BROKEN_COLLECTIVE = {("exception", "restart"), ("exit_code", "restart")}
ROUND_END = re.compile(r"quorate: round (\d+) ended \((\w+) -> (\w+)\): (.*)")


@final
@dataclass
class Story:
    """What has happened so far, for the summary."""

    began: float = field(default_factory=time.monotonic)
    worker_killed_at_epoch: int = 0
    agent_killed_at_epoch: int = 0
    restart_seconds: float = 0.0
    sweep_seconds: float = 0.0
    shrink_seconds: float = 0.0
    grow_seconds: float = 0.0

    def say(self, sentence: str) -> None:
        print(f"[{time.monotonic() - self.began:5.1f} s] {sentence}", flush=True)


def agent_arguments(port: int, backend: str, output: Path, *, hosts_store: bool) -> list[str]:
    script = Path(__file__).with_name("train.py")
    return [
        "--nnodes=1:2",
        f"--nproc-per-node={WORKERS}",
        "--max-restarts=3",
        f"--rdzv-backend={backend}",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        "--rdzv-id=digits",
        # Explicit, because the demonstration must not kill the agent that hosts the store.
        f"--rdzv-conf=is_host={'true' if hosts_store else 'false'}",
        str(script),
        f"--epochs={EPOCHS}",
        "--epoch-seconds=0.3",
        f"--hold={output / HOLD}",
        f"--output={output}",
        f"--progress={output / 'progress.fifo'}",
    ]


def first_step(round_number: int, world_size: int) -> Any:
    """Return a condition: rank 0 has done a training step in a later round than ``round_number``."""
    return lambda m: m.kind == "step" and m.rank == 0 and m.round > round_number and m.world_size == world_size


def perform(stage: Stage, story: Story, port: int, backend: str) -> None:
    """Run all scenes; the evidence is in ``stage.messages``, the agents' logs and the checkpoints."""
    output = stage.output
    story.say("two agents start, each with two workers: quorate run --nnodes=1:2 --nproc-per-node=2 … train.py")
    (output / HOLD).touch()
    host = stage.start_agent("first", agent_arguments(port, backend, output, hosts_store=True))
    guest = stage.start_agent("second", agent_arguments(port, backend, output, hosts_store=False))
    stage.wait_for("training begins", first_step(-1, 2 * WORKERS), TIMEOUT_SECONDS)
    story.say("training began with four workers")

    kill_a_worker(stage, story, guest)
    kill_an_agent(stage, story, guest)

    alone = stage.messages[-1].round
    started = time.monotonic()
    story.say("a replacement agent starts")
    stage.start_agent("replacement", agent_arguments(port, backend, output, hosts_store=False))
    seen = stage.wait_for("training in a world of four again", first_step(alone, 2 * WORKERS), TIMEOUT_SECONDS)
    (output / HOLD).unlink()
    story.grow_seconds = seen.at - started
    story.say(f"four workers train again, {story.grow_seconds:.1f} s after the replacement was started")

    for agent in (host, stage.agents["replacement"]):
        agent.may_end = True
    for agent in (host, stage.agents["replacement"]):
        code = stage.wait_until_ended(agent, TIMEOUT_SECONDS)
        expect(code == 0, f"agent {agent.name} ended with exit code {code}\n{agent.last_lines()}")
    story.say("both agents ended with exit code 0")


def kill_a_worker(stage: Stage, story: Story, guest: Agent) -> None:
    """Scene one: SIGKILL to a single worker, in the middle of an epoch."""
    now = stage.wait_for(
        f"epoch {KILL_WORKER_AFTER} is reached",
        lambda m: m.kind == "step" and m.rank == 0 and m.epoch > KILL_WORKER_AFTER,
        TIMEOUT_SECONDS,
    )
    victim = workers_of(stage, guest, now.round)[-1]
    saved = newest_checkpoint(stage.output)
    story.worker_killed_at_epoch = now.epoch
    killed_at, _ = kill_and_wait(victim.pid, [], TIMEOUT_SECONDS)
    story.say(f"SIGKILL to rank {victim.rank} of agent {guest.name} during epoch {now.epoch}")
    seen = stage.wait_for(
        "training goes on after the worker's death", first_step(now.round, 2 * WORKERS), TIMEOUT_SECONDS
    )
    story.restart_seconds = seen.at - killed_at
    expect(seen.restart == 1, f"the restart count is {seen.restart}, not 1")
    went_on(stage, seen, saved)
    story.say(f"training went on at epoch {seen.epoch}, {story.restart_seconds:.1f} s after the kill")


def kill_an_agent(stage: Stage, story: Story, guest: Agent) -> None:
    """Scene two: SIGKILL to a whole agent; its workers must die with it, and the other agent go on alone."""
    now = stage.wait_for(
        f"epoch {KILL_AGENT_AFTER} is reached",
        lambda m: m.kind == "step" and m.rank == 0 and m.epoch > KILL_AGENT_AFTER,
        TIMEOUT_SECONDS,
    )
    saved = newest_checkpoint(stage.output)
    story.agent_killed_at_epoch = now.epoch
    guest.may_end = True
    workers = [message.pid for message in workers_of(stage, guest, now.round)]
    killed_at, story.sweep_seconds = kill_and_wait(guest.process.pid, workers, 10.0)
    guest.process.wait()
    story.say(
        f"SIGKILL to agent {guest.name} during epoch {now.epoch}; "
        f"its workers were gone {story.sweep_seconds * 1000:.0f} ms later"
    )
    seen = stage.wait_for("training goes on without the agent", first_step(now.round, WORKERS), TIMEOUT_SECONDS)
    story.shrink_seconds = seen.at - killed_at
    went_on(stage, seen, saved)
    story.say(f"training went on at epoch {seen.epoch} with two workers, {story.shrink_seconds:.1f} s after the kill")
    # The replacement ends this round, which must have written a checkpoint before.
    stage.wait_for(
        "two workers finish an epoch", lambda m: m.kind == "checkpoint" and m.round == seen.round, TIMEOUT_SECONDS
    )


# --- evidence -------------------------------------------------------------------------------------------------------


def expect(condition: bool, sentence: str) -> None:
    if not condition:
        raise DemoError(sentence)


def workers_of(stage: Stage, agent: Agent, round_number: int) -> list[Message]:
    """Return the first messages of the workers of ``agent`` in this round, by rank."""
    ready = [m for m in stage.messages if m.kind == "ready" and m.node == agent.name and m.round == round_number]
    expect(len(ready) == WORKERS, f"{len(ready)} workers of agent {agent.name} reported, not {WORKERS}")
    return sorted(ready, key=lambda message: message.rank)


def newest_checkpoint(output: Path) -> int:
    """Return the number of epochs that the newest checkpoint holds."""
    return max(int(path.stem.partition("-")[2]) for path in (output / "checkpoints").glob("epoch-*.pt"))


def went_on(stage: Stage, seen: Message, saved: int) -> None:
    """Check that the round of ``seen`` resumed from the newest checkpoint, which was at least ``saved``."""
    starts = {m.resumed_from for m in stage.messages if m.kind == "ready" and m.round == seen.round}
    expect(len(starts) == 1, f"the workers of round {seen.round} resumed from different checkpoints: {sorted(starts)}")
    resumed_from = starts.pop()
    # The running epoch may have been saved just before its workers were stopped.
    expect(saved <= resumed_from <= saved + 1, f"resumed from epoch {resumed_from}, but {saved} was saved")
    expect(seen.epoch == resumed_from + 1, f"resumed from epoch {resumed_from}, but went on at {seen.epoch}")


def check_history(history: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, int, int]]:
    """Check that every epoch was trained once, in order; return ``(round, world size, first epoch, last epoch)``."""
    epochs = [entry["epoch"] for entry in history]
    expect(epochs == list(range(1, EPOCHS + 1)), f"the epochs of the result are {epochs}")
    parts: list[tuple[int, int, int, int]] = []
    for entry in history:
        number, size, epoch = entry["round"], entry["world_size"], entry["epoch"]
        if parts and parts[-1][0] == number:
            parts[-1] = (number, size, parts[-1][2], epoch)
        else:
            parts.append((number, size, epoch, epoch))
    sizes = [part[1] for part in parts]
    expect(sizes == [4, 4, 2, 4], f"the world sizes were {sizes}, not 4, 4, 2, 4")
    return parts


def check_causes(log: Path) -> dict[int, tuple[str, str, str]]:
    """Return round -> (cause, verdict, reason) as the surviving agent printed them, after checking their order."""
    ends = {
        int(found[1]): (found[2], found[3], found[4])
        for line in log.read_text(errors="replace").splitlines()
        if (found := ROUND_END.match(line))
    }
    causes = [(cause, verdict) for cause, verdict, _ in ends.values()]
    expect(len(causes) == 3, f"not three rounds ended early: {ends}")
    expect(causes[0] == ("signal", "restart"), f"the first round ended otherwise: {ends}")
    # The survivors' collectives break, and the dead agent's lease runs out: what is noticed first is recorded.
    expect(causes[1] in {("node_lost", "rescale"), *BROKEN_COLLECTIVE}, f"the second round ended otherwise: {ends}")
    expect(causes[2] == ("node_joined", "rescale"), f"the third round ended otherwise: {ends}")
    return ends


def check_and_summarize(stage: Stage, story: Story) -> None:
    """Check the results and print the summary."""
    result = json.loads((stage.output / "result.json").read_text())
    parts = check_history(result["history"])
    ends = check_causes(stage.agents["first"].log)
    restarts = result["history"][-1]["restart"]
    # Whatever cause was recorded when the agent died: losing a node costs no restart, so only the worker counts.
    expect(restarts == 1, f"the job exports {restarts} restarts, not the one for the killed worker")
    expect(result["accuracy"] >= ENOUGH_ACCURACY, f"the accuracy is {result['accuracy']:.2%} only")
    print("\nWhat happened")
    for number, size, first, last in parts:
        print(f"  round {number}: {size} workers, epochs {first} to {last}")
        if number in ends:
            cause, verdict, reason = ends[number]
            print(f"           ended by {cause}, so {verdict}: {reason}")
    print("\nTime until the next training step")
    print(f"  worker killed in epoch {story.worker_killed_at_epoch}: {story.restart_seconds:.1f} s")
    print(
        f"  agent killed in epoch {story.agent_killed_at_epoch}: {story.shrink_seconds:.1f} s "
        f"(its workers ended {story.sweep_seconds * 1000:.0f} ms after it)"
    )
    print(f"  replacement, from its start: {story.grow_seconds:.1f} s")
    print("  (most of that is torch's import and the workers' own start)")
    print(
        f"\nEvery epoch was trained once, the job used {restarts} of 3 restarts; test accuracy {result['accuracy']:.2%}"
    )
    print(f"Done in {time.monotonic() - story.began:.0f} s; logs and checkpoints are in {stage.output}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train, kill a worker and an agent, and check that training goes on.")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="deleted at the start")
    parser.add_argument("--rdzv-backend", default="c10d", help="any backend in which one agent hosts the store")
    options = parser.parse_args()
    output = options.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    story = Story()

    def follow(message: Message) -> None:
        if message.kind == "checkpoint" and message.epoch % 10 == 0:
            story.say(
                f"epoch {message.epoch} of {EPOCHS} is saved (round {message.round}, {message.world_size} workers)"
            )

    with hold_port() as holder, Stage(output) as stage:
        stage.on_message(follow)
        try:
            perform(stage, story, holder.getsockname()[1], options.rdzv_backend)
            check_and_summarize(stage, story)
        except DemoError as error:
            print(f"\nThe demonstration failed: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
