"""CPU-only gangs never stand in the way of GPUs, and GPUs not in theirs."""

from __future__ import annotations

from msgspec.structs import replace

from rackscale.events import Booked, Drained, Preempt, Restart, Start
from rackscale.workload import Booking, Job, Policy, Queue, Shape
from tests.scheduler.world import World, domain, job

A, B = "c/us-000", "c/us-001"


def cpu(name: str, nodes: int = 1, **more: object) -> Job:
    return replace(job(name, nodes), cpu_only=True, **more)


def test_a_domain_full_of_cpu_only_gangs_takes_a_gang_with_gpus() -> None:
    world = World(domain(0))
    world.submit(*(cpu(f"c{i}", 9) for i in range(2)))
    world.submit(job("gpu", 17))
    assert world.where("gpu") == [A]
    assert world.where("c0") == world.where("c1") == [A]


def test_a_domain_full_of_gpu_gangs_takes_one_cpu_only_gang_per_node() -> None:
    world = World(domain(0, spares=0))
    world.submit(job("gpu", 18))
    world.submit(cpu("c0", 18), cpu("c1", 1))
    assert world.gang("c0").binding
    assert world.gang("c1").status == "waiting"


def test_cpu_only_gangs_hold_no_gpus_and_cost_no_quota() -> None:
    world = World(domain(0), queues=(Queue(name="default", quota_gpus=0, borrow_gpus=0),))
    world.submit(cpu("c", 4, preemptible=False))
    assert world.gang("c").gpus == 0
    assert world.state.tree.node("default").gpus == 0
    assert world.gang("c").binding


def test_cpu_only_gangs_count_towards_the_number_of_gangs() -> None:
    world = World(domain(0), queues=(Queue(name="default", max_gangs=1),))
    world.submit(cpu("c0"), cpu("c1"))
    assert world.gang("c1").status == "waiting"
    world.end("c0")
    assert world.gang("c1").binding


def test_nobody_is_evicted_or_promised_anything_for_or_instead_of_a_cpu_only_gang() -> None:
    world = World(domain(0, spares=0), policy=Policy(min_runtime_s=0.0))
    world.submit(cpu("c0", 18, priority="low"), job("gpu", 18, priority="low"))
    actions = world.submit(cpu("vip", 18, priority="production"), at_s=100.0)
    assert not any(isinstance(a, Preempt) for a in actions)
    assert not world.state.reserved
    taken = world.submit(job("vip-gpu", 18, priority="production"), at_s=200.0)
    assert [a.gang for a in taken if isinstance(a, Preempt)] == ["gpu"]


def test_a_failed_node_under_a_cpu_only_gang_is_replaced_by_one_that_gpus_are_used_on() -> None:
    world = World(domain(0, spares=0))
    world.submit(cpu("c", 4), job("gpu", 18))
    actions = world.fail(A, 0)
    (restart,) = [a for a in actions if isinstance(a, Restart)]
    assert restart.gang == "c"
    assert not {0} & set(restart.binding[0].nodes)
    assert world.state.machines.cpu.occupancy.held[0].bit_count() == 4


def test_a_cpu_only_gang_moves_to_another_domain_if_its_own_is_lost() -> None:
    world = World(domain(0), domain(1))
    world.submit(cpu("c", 4))
    world.fail(A)
    assert world.where("c") == [B]


def test_drained_nodes_are_left_by_cpu_only_gangs_too() -> None:
    world = World(domain(0))
    world.submit(cpu("c", 4))
    actions = world.cycle(Drained(at_s=1.0, domain=A, nodes=(0,)))
    assert [a.gang for a in actions if isinstance(a, Preempt)] == ["c"]
    starts = [a for a in world.end("c", "left") if isinstance(a, Start)]
    assert all(0 not in s.nodes for a in starts for s in a.binding)


def test_cpu_only_gangs_run_beside_gpu_gangs_inside_a_booking_too() -> None:
    world = World(domain(0))
    booking = Booking(name="trip", shape=Shape(nodes_per_segment=8), start_s=0.0, end_s=1000.0)
    world.cycle(Booked(at_s=0.0, booking=booking))
    world.submit(replace(job("gpu", 8), booking="trip"))
    world.submit(cpu("c0", 8, booking="trip"), cpu("c1", 1, booking="trip"))
    assert world.gang("gpu").binding
    assert world.gang("c0").binding
    assert world.gang("c1").status == "waiting"


def test_inside_a_booking_a_failed_node_of_a_cpu_only_gang_is_not_replaced_by_another_gang_s() -> None:
    world = World(domain(0, nodes=4, spares=0), policy=Policy(preemption=False))
    trip = Booking(name="trip", shape=Shape(nodes_per_segment=4), start_s=0.0, end_s=9000.0)
    world.cycle(Booked(at_s=0.0, booking=trip))
    world.submit(cpu("c0", 2, booking="trip"), cpu("c1", 2, booking="trip"))
    assert world.where("c0") == world.where("c1") == [A]
    world.fail(A, world.gang("c0").binding[0].nodes[0])
    assert world.gang("c0").status == "leaving"
    assert world.gang("c1").status == "running"
