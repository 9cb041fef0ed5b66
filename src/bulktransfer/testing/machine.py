"""A Hypothesis state machine that drives real channels and the specification side by side.

Knows: which steps there are, and how often each is tried. Must not know: how a step is done, or compared.

    python -m bulktransfer.testing.machine --steps 20000 --backend shm --trust full [--processes]

As a test, `run(subject, trust, plan)` raises `Discrepancy` with the shortest sequence of steps that Hypothesis found.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import bulktransfer as bulk

from ..spec import model as m
from ..spec.state import OVER
from ..spec.steps import transfers
from .plans import PLANS, Plan
from .sidebyside import Discrepancy, SideBySide
from .subject import Subject

BACKENDS = ("local:", "shm:", "fullcopy:")

Making = Callable[[], SideBySide]

domains, channels, sides, picks = (st.integers(0, n) for n in (3, 11, 1, 63))


class Machine(RuleBasedStateMachine):
    """One system from its beginning; `make` is set by a subclass (see machine_of)."""

    make: Making
    tally: Counter[str]
    may_end = True

    def __init__(self) -> None:
        super().__init__()
        self.it = type(self).make()

    def teardown(self) -> None:
        """End it, and count its steps."""
        type(self).tally["steps"] += len(self.it.steps)
        type(self).tally["systems"] += 1
        self.it.close()

    # ---- picking what is there ----

    def channel(self, number: int) -> int:
        """A channel that there is."""
        return number % len(self.it.oracle.state.channels)

    def buffer(self, number: int) -> int:
        """A buffer that there is."""
        return number % self.it.buffers

    def domain(self, number: int) -> int:
        """A domain that there is."""
        return number % len(self.it.oracle.state.alive)

    def lives(self, channel: int, side: int) -> bool:
        """Whether the domain of that end lives."""
        return self.it.alive(self.it.oracle.state.channels[channel].domains[side])

    def connected(self, channel: int, side: int) -> bool:
        """Whether that end can ask for something."""
        return self.lives(channel, side) and self.it.oracle.stage(channel, side) not in OVER

    def has_pool(self, domain: int) -> bool:
        """Whether the domain lives and has the pool."""
        return self.it.alive(domain) and self.it.oracle.present(domain, 0)

    # ---- transfers ----

    @rule(pick=picks)
    def send_what_may_be_sent(self, pick: int) -> None:
        """One of the transfers that the specification allows now."""
        allowed = [step for step, _ in transfers(self.it.oracle.state, 64) if self.it.alive(step.domain)]
        if allowed:
            step = allowed[pick % len(allowed)]
            self.it.send(step.act, step.domain, step.channel, step.item)

    @rule(pick=picks)
    def send_another(self, pick: int) -> None:
        """The same: most of the time something is to happen."""
        self.send_what_may_be_sent(pick)

    @rule(pick=st.integers(0, 255))
    def send_what_is_here(self, pick: int) -> None:
        """A transfer of a buffer that is owned or held, from the right end: allowed or not."""
        state = self.it.oracle.state
        likely = [
            (act, it.domains[side], channel, buffer)
            for channel, it in enumerate(state.channels)
            for act, side in (("move", m.SOURCE), ("copy", m.SOURCE), ("pass", m.SINK), ("release", m.SINK))
            if state.alive[it.domains[side]]
            for buffer in range(self.it.buffers)
            if state.views[it.domains[side]][buffer].state != m.INVALID
        ]
        if likely:
            self.it.send(*likely[pick % len(likely)])

    @rule(act=st.sampled_from(["move", "copy", "pass", "release"]), channel=channels, side=sides, buffer=picks)
    def send_anything(self, act: str, channel: int, side: int, buffer: int) -> None:
        """A transfer that may or may not be allowed, also from the wrong end."""
        channel = self.channel(channel)
        domain = self.it.oracle.state.channels[channel].domains[side]
        if self.it.alive(domain) and self.has_pool(domain):
            self.it.send(act, domain, channel, self.buffer(buffer))

    @rule(channel=channels, buffer=picks, into=picks)
    def full_copy(self, channel: int, buffer: int, into: int) -> None:
        """A copy into another buffer."""
        channel = self.channel(channel)
        domain = self.it.oracle.state.channels[channel].domains[m.SOURCE]
        if self.has_pool(domain) and self.buffer(buffer) != self.buffer(into):
            self.it.full_copy(domain, channel, self.buffer(buffer), self.buffer(into))

    @rule(domain=domains, buffer=picks)
    def write(self, domain: int, buffer: int) -> None:
        """New contents, if it may be."""
        if self.has_pool(self.domain(domain)):
            self.it.write(self.domain(domain), self.buffer(buffer))

    @rule(channel=channels, side=sides)
    def receive(self, channel: int, side: int) -> None:
        """One event of one end."""
        if self.lives(self.channel(channel), side):
            self.it.receive(self.channel(channel), side)

    @rule(channel=channels)
    def receive_all(self, channel: int) -> None:
        """Everything that is on its way over one channel."""
        self.it.receive_all(self.channel(channel))

    # ---- pools ----

    @rule(act=st.sampled_from(["assign", "remove"]), channel=channels, side=sides)
    def ask_for_a_pool(self, act: str, channel: int, side: int) -> None:
        """The pool comes or goes, or is refused to."""
        channel = self.channel(channel)
        if self.connected(channel, side) and self.has_pool(self.it.oracle.state.channels[channel].domains[side]):
            self.it.ask(act, channel, side)

    @rule(act=st.sampled_from(["assign", "remove"]), channel=channels)
    def ask_for_a_pool_at_both_ends(self, act: str, channel: int) -> None:
        """Crossing requests."""
        channel = self.channel(channel)
        ends = self.it.oracle.state.channels[channel].domains
        if all(self.connected(channel, side) and self.has_pool(ends[side]) for side in (m.SOURCE, m.SINK)):
            self.it.ask(act, channel, m.SOURCE, m.SINK)

    # ---- ends ----

    @precondition(lambda self: self.may_end)
    @rule(domain=domains, buffer=picks)
    def drop(self, domain: int, buffer: int) -> None:
        """Let go, if it may be."""
        if self.has_pool(self.domain(domain)):
            self.it.drop(self.domain(domain), self.buffer(buffer))

    @precondition(lambda self: self.may_end)
    @rule(channel=channels, side=sides)
    def close(self, channel: int, side: int) -> None:
        """Close one end; the other hears of it when it receives."""
        if self.connected(self.channel(channel), side):
            self.it.close_end(self.channel(channel), side)

    @precondition(lambda self: self.may_end)
    @rule(channel=channels, side=sides)
    def destroy(self, channel: int, side: int) -> None:
        """The end in order."""
        if self.connected(self.channel(channel), side):
            self.it.ask("destroy", self.channel(channel), side)

    @precondition(lambda self: self.may_end)
    @rule(source=domains, sink=domains, creator=sides)
    def connect(self, source: int, sink: int, creator: int) -> None:
        """A further channel, and the pool on it."""
        if self.domain(source) != self.domain(sink):
            self.it.connect(self.domain(source), self.domain(sink), creator)

    @precondition(lambda self: self.may_end)
    @rule(domain=domains)
    def leave(self, domain: int) -> None:
        """A domain gives up everything: abruptly, where it is a process by SIGKILL."""
        domain = self.domain(domain)
        if not self.it.alive(domain):
            return
        if self.it.processes and domain != self.it.plan.home:
            self.it.kill(domain)
        else:
            self.it.leave(domain)


def machine_of(make: Making, *, may_end: bool = True) -> type[Machine]:
    """The machine for one kind of system; its `tally` counts steps and systems."""
    return type("Machine", (Machine,), {"make": staticmethod(make), "tally": Counter(), "may_end": may_end})


def run(
    subject: Subject,
    trust: bulk.Trust,
    plan: Plan,
    *,
    examples: int = 20,
    steps: int = 40,
    shrink: bool = True,
    may_end: bool = True,
    seed: int | None = None,
    **options: Any,
) -> Counter[str]:
    """Drive so many systems of one plan by so many rules each; what was counted. Raises: Discrepancy."""
    machine = machine_of(lambda: SideBySide(subject, trust, plan, **options), may_end=may_end)
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        deadline=None,
        database=None,
        print_blob=False,
        derandomize=seed is None,
    )
    if seed is not None:
        hypothesis.seed(seed)(machine)
    run_state_machine_as_test(machine, settings=chosen)
    return machine.tally


def main(argv: list[str] | None = None) -> int:
    """The long run. Raises: SystemExit (arguments)."""
    parser = argparse.ArgumentParser(prog="python -m bulktransfer.testing.machine", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="steps for each backend and trust level")
    parser.add_argument("--backend", action="append", help=f"addresses to create; default: {', '.join(BACKENDS)}")
    parser.add_argument("--trust", action="append", choices=[trust.name.lower() for trust in bulk.Trust if trust.value])
    parser.add_argument("--plan", action="append", choices=list(PLANS))
    parser.add_argument("--processes", action="store_true", help="each domain is a process, and may be killed")
    parser.add_argument("--papers", nargs=3, metavar=("CERTIFICATE", "KEY", "AUTHORITY"), help="files, for tls:")
    parser.add_argument("--no-ends", action="store_true", help="no channel ends, and nobody dies")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    wrong = 0
    for address in args.backend or BACKENDS:
        address = address if ":" in address else f"{address}:"
        options = _options(args.papers) if address.startswith("tls:") else {}
        subject = Subject(address, processes=not address.startswith("local:"), **options)
        if args.processes and not subject.processes:
            continue
        for trust in subject.trusts:
            if args.trust is None or trust.name.lower() in args.trust:
                wrong += not _long(subject, trust, args)
    return 1 if wrong else 0


def _options(papers: list[str] | None) -> dict[str, Any]:
    """What both ends say of their network."""
    if papers is None:
        return {}
    certificate, key, authority = papers
    return {
        "create": {"network": bulk.Network(certificate=certificate, key=key)},
        "bind": {"network": bulk.Network(authority=authority)},
    }


def _long(subject: Subject, trust: bulk.Trust, args: argparse.Namespace) -> bool:
    """One backend at one level, through all plans in turn; whether nothing was found."""
    done: Counter[str] = Counter()
    begun, seed = time.monotonic(), args.seed
    name = f"{subject.address} trust {trust.name}{', processes' if args.processes else ''}"
    plans = [(plan, PLANS[plan]) for plan in args.plan or PLANS if plan != "loopback"]
    while done["steps"] < args.steps:
        for title, plan in plans:
            try:
                options = {"processes": args.processes, "may_end": not args.no_ends}
                done += run(subject, trust, plan, seed=seed, examples=10, steps=60, **options)
            except Discrepancy as found:
                print(f"{name}: a discrepancy in plan {title}, seed {seed}, {found}", file=sys.stderr)
                return False
            if done["steps"] >= args.steps:
                break
        seed += 1
    seconds = time.monotonic() - begun
    print(
        f"{name}: {done['steps']:,} steps in {done['systems']:,} systems, {seconds:.0f} s: no discrepancy", flush=True
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
