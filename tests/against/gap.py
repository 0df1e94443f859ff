"""How far answers of the scheduler are from the best ones, on one small instance at a time."""

from __future__ import annotations

from dataclasses import dataclass

from rackscale.events import Action, Binding, Claim, Move, Preempt, Start, Submitted
from rackscale.scheduler import decide
from rackscale.workload import Job
from tests.against.cpsat import Program, cheapest, fewest_left, most_started
from tests.against.instances import NOW_S, WEIGHTS, Instance


@dataclass(frozen=True)
class Gap:
    """What ours came to, and the best; None: no answer."""

    ours: int | None
    best: int | None

    @property
    def excess(self) -> int:
        """Where both have an answer: what ours comes to beyond the best."""
        assert self.ours is not None
        assert self.best is not None
        return self.ours - self.best


def ask(instance: Instance, *jobs: Job) -> tuple[Action, ...]:
    for job in jobs:
        instance.state.fold(Submitted(at_s=NOW_S, job=job))
    return decide(instance.state, NOW_S).actions


def lawful(instance: Instance, binding: Binding, job: Job) -> bool:
    """Whether the binding is a placement of the gang, as the oracle understands the rules; room aside."""
    boxes = instance.boxes()
    program = Program(boxes, job.shape, job.nearness)
    program.whole()
    names = [segment.domain for segment in binding]
    for d, box in enumerate(boxes):
        program.model.add(program.segments[d] == names.count(box.name))
    return program.least(0) is not None


def of_placement(instance: Instance, job: Job) -> Gap:
    """Free nodes left in the domains used, beyond spares."""
    boxes = instance.boxes()
    best = fewest_left(boxes, job.shape, job.nearness)
    started = [a for a in ask(instance, job) if isinstance(a, Start) and a.gang == job.name]
    if not started:
        return Gap(None, best)
    assert lawful(instance, started[0].binding, job)
    rooms = {box.name: box.free - box.spares for box in boxes}
    used = {segment.domain for segment in started[0].binding}
    return Gap(sum(rooms[name] for name in used) - job.shape.nodes_held, best)


def of_victims(instance: Instance, job: Job) -> Gap:
    """The price of everybody who leaves or shrinks for the gang, GPU-seconds."""
    boxes, law = instance.boxes(), instance.law()
    best = cheapest(boxes, job.shape, job.nearness, instance.tenants, law)
    actions = ask(instance, job)
    mine = [a for a in actions if isinstance(a, Start | Claim) and a.gang == job.name]
    if not mine:
        return Gap(None, best)
    assert lawful(instance, mine[0].binding, job)
    prices = {tenant.name: tenant.price for tenant in instance.tenants}
    less = {(t.name, k + 1): less.price for t in instance.tenants for k, less in enumerate(t.less)}
    ours = sum(
        less[a.gang, a.choice] if isinstance(a, Move) else prices[a.gang]
        for a in actions
        if isinstance(a, Preempt | Move)
    )
    return Gap(ours, best)


def of_batch(instance: Instance, jobs: tuple[Job, ...]) -> Gap:
    """Weight of the gangs started in one cycle, moving nobody."""
    weights = {job.name: job.shape.nodes * WEIGHTS[job.priority] for job in jobs}
    best = most_started(instance.boxes(), [(j.shape, j.nearness, weights[j.name]) for j in jobs])
    started = [a.gang for a in ask(instance, *jobs) if isinstance(a, Start)]
    return Gap(sum(weights[name] for name in started), best)
