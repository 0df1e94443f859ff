"""Small fleets as integer programs: what the best answer would have been, by OR-Tools CP-SAT.

Nodes of a domain are interchangeable, so a program counts them. Nothing here reads a state of rackscale: callers say
what is free, who holds what and what it costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ortools.sat.python import cp_model

from rackscale.workload import LEVELS, Level, Nearness, Shape

Unit = tuple[str, ...]


@dataclass(frozen=True)
class Box:
    """One NVLink domain."""

    name: str
    group: tuple[str, str]
    """Cluster and system: a gang lies inside one group."""
    free: int
    """Usable nodes that nobody holds, spares included."""
    spares: int
    fabric: tuple[str, str, str, str] = ("", "", "", "")
    """Region, building, spine, leaf."""

    def unit(self, level: Level) -> Unit:
        """The unit of this level that it lies in."""
        if level == "domain":
            return (self.name,)
        return (self.group[0], *self.fabric[: len(self.fabric) + 1 - LEVELS.index(level)])


@dataclass(frozen=True)
class Less:
    """What an elastic gang may shrink to, and the price of that."""

    shape: Shape
    price: int


@dataclass(frozen=True)
class Tenant:
    """A gang that may be sent away or shrunk."""

    name: str
    on: tuple[int, ...]
    """Nodes held, by box."""
    gpus_per_node: int
    price: int
    """Of sending it away, GPU-seconds."""
    queue: str = ""
    less: tuple[Less, ...] = ()


@dataclass(frozen=True)
class Law:
    """What limits a set of victims."""

    budgets: Mapping[str, int]
    """Gangs that may be taken from a queue; a queue that is not named has no limit."""
    above: Mapping[str, int]
    """GPUs that a queue holds beyond its quota; a queue that is not named may lose all."""


class Program:
    """One gang to place on boxes, perhaps on nodes that others leave."""

    def __init__(
        self, boxes: Sequence[Box], shape: Shape, nearness: Nearness, model: cp_model.CpModel | None = None
    ) -> None:
        self.model = cp_model.CpModel() if model is None else model
        self.boxes, self.shape = boxes, shape
        most = shape.segments if shape.may_share_domain else 1
        self.segments = [self.model.new_int_var(0, most, f"x{d}") for d in range(len(boxes))]
        self.used = [self.model.new_bool_var(f"u{d}") for d in range(len(boxes))]
        for segments, used in zip(self.segments, self.used, strict=True):
            self.model.add(segments >= used)
            self.model.add(segments <= most * used)
        self._one_of([box.group for box in boxes])
        if nearness.within is not None:
            self._one_of([box.unit(nearness.within) for box in boxes])
        if nearness.spread is not None:
            units = [box.unit(nearness.spread) for box in boxes]
            for unit in set(units):
                self.model.add(sum(self._in(units, unit)) <= 1)

    def _in(self, units: Sequence[Unit], unit: Unit) -> list[Any]:
        return [x for x, of in zip(self.segments, units, strict=True) if of == unit]

    def _one_of(self, units: Sequence[Unit]) -> None:
        """All segments lie in one of these units."""
        chosen = {unit: self.model.new_bool_var(f"in {unit}") for unit in dict.fromkeys(units)}
        self.model.add_at_most_one(chosen.values())
        for unit, taken in chosen.items():
            self.model.add(sum(self._in(units, unit)) <= self.shape.segments * taken)

    def whole(self, wanted: Any = 1) -> None:
        """The gang is placed whole (or, where `wanted` is 0, not at all)."""
        self.model.add(sum(self.segments) == self.shape.segments * wanted)

    def need(self, d: int) -> Any:
        """Nodes that the gang takes of box d, with the spares that must stay free beside it."""
        return self.segments[d] * self.shape.nodes_held_per_segment + self.boxes[d].spares * self.used[d]

    def least(self, objective: Any) -> int | None:
        """The least value of the objective, or None where nothing satisfies the program."""
        self.model.minimize(objective)
        return _solve(self.model)


def _solve(model: cp_model.CpModel) -> int | None:
    """The value of the model's objective at the optimum; None: nothing satisfies it."""
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.solve(model)
    if solver.status_name() == "INFEASIBLE":
        return None
    assert solver.status_name() == "OPTIMAL", "too large for a test"
    return round(solver.objective_value)


def fewest_left(boxes: Sequence[Box], shape: Shape, nearness: Nearness) -> int | None:
    """The fewest free nodes, beyond spares, that a placement leaves in the boxes that it uses."""
    program = Program(boxes, shape, nearness)
    program.whole()
    for d, box in enumerate(boxes):
        program.model.add(program.need(d) <= box.free).only_enforce_if(program.used[d])
    rooms = [max(0, box.free - box.spares) for box in boxes]
    return program.least(
        sum(u * room for u, room in zip(program.used, rooms, strict=True)) - shape.nodes_held
    )


def cheapest(
    boxes: Sequence[Box], shape: Shape, nearness: Nearness, tenants: Sequence[Tenant], law: Law
) -> int | None:
    """The least price of evictions and shrinks after which the gang fits, GPU-seconds."""
    program = Program(boxes, shape, nearness)
    program.whole()
    leaving = [_Leaving(program.model, tenant, len(boxes)) for tenant in tenants]
    for d, box in enumerate(boxes):
        freed = sum(gang.freed[d] for gang in leaving)
        program.model.add(program.need(d) <= box.free + freed).only_enforce_if(program.used[d])
    for queue, budget in law.budgets.items():
        taken = [gang.taken for gang in leaving if gang.tenant.queue == queue]
        program.model.add(sum(taken) <= max(0, budget))
    for queue, above in law.above.items():
        lost = [gang.lost_gpus for gang in leaving if gang.tenant.queue == queue]
        program.model.add(sum(lost) <= max(0, above))
    return program.least(sum(gang.price for gang in leaving))


class _Leaving:
    """One tenant's part of a program: it stays, leaves, or keeps some of its own nodes in a smaller shape."""

    def __init__(self, model: cp_model.CpModel, tenant: Tenant, boxes: int) -> None:
        self.tenant = tenant
        evicted = model.new_bool_var(f"{tenant.name} leaves")
        shrunk = [model.new_bool_var(f"{tenant.name} shrinks {k}") for k in range(len(tenant.less))]
        self.taken = evicted + sum(shrunk)
        model.add(self.taken <= 1)
        kept: list[Any] = [0] * boxes
        for chosen, less in zip(shrunk, tenant.less, strict=True):
            stay = [
                model.new_int_var(0, _most(held, less.shape), f"{tenant.name} {chosen.name} {d}")
                for d, held in enumerate(tenant.on)
            ]
            model.add(sum(stay) == less.shape.segments * chosen)
            kept = [k + s * less.shape.nodes_held_per_segment for k, s in zip(kept, stay, strict=True)]
        self.freed = [held * self.taken - k for held, k in zip(tenant.on, kept, strict=True)]
        self.lost_gpus = sum(self.freed) * tenant.gpus_per_node
        self.price = tenant.price * evicted + sum(
            less.price * chosen for chosen, less in zip(shrunk, tenant.less, strict=True)
        )


def _most(held: int, shape: Shape) -> int:
    """Segments that fit into so many nodes."""
    fit = held // shape.nodes_held_per_segment
    return fit if shape.may_share_domain else min(fit, 1)


def most_started(boxes: Sequence[Box], waiting: Iterable[tuple[Shape, Nearness, int]]) -> int:
    """The most weight of gangs (shape, nearness, weight) that can start together, moving nobody."""
    model = cp_model.CpModel()
    taken: list[Any] = [0] * len(boxes)
    worth: Any = 0
    for number, (shape, nearness, weight) in enumerate(waiting):
        started = model.new_bool_var(f"start {number}")
        worth = worth + weight * started
        for d, nodes in enumerate(_placed(model, boxes, shape, nearness, started)):
            taken[d] = taken[d] + nodes
    for d, box in enumerate(boxes):
        model.add(taken[d] <= max(0, box.free - box.spares))
    model.maximize(worth)
    found = _solve(model)
    assert found is not None, "to start nobody is always possible"
    return found


def _placed(
    model: cp_model.CpModel, boxes: Sequence[Box], shape: Shape, nearness: Nearness, started: Any
) -> list[Any]:
    """Nodes that one of several gangs takes, by box."""
    program = Program(boxes, shape, nearness, model)
    program.whole(started)
    return [segments * shape.nodes_held_per_segment for segments in program.segments]
