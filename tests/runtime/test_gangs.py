"""Gangs' lives on this machine, under the real control loop."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import msgspec
import pytest

from rackscale import events as ev
from rackscale.programs import instance, processes
from rackscale.runtime import gangs
from rackscale.runtime.supervisor import Settings
from rackscale.workload import Durability
from tests.runtime.world import QUICK, STEPS, World

Make = Callable[..., World]


def steps(number: int, step_s: float = 0.02, *more: str) -> str:
    return " ".join(["python", str(STEPS), str(number), str(step_s), *more])


# -- ends ------------------------------------------------------------------------------------------------------------


def test_a_gang_runs_reports_and_finishes(world: World) -> None:
    world.submit(steps(12), nodes=2)
    assert world.until_ended() == "finished"
    (running,) = world.all(ev.GangRunning)
    assert (running.attempt, running.step, running.url) == (1, 0, None)
    assert world.all(ev.Checkpointed)[-1].step == 10
    assert world.all(ev.Progressed)[-1].step == 12
    assert world.all(ev.Progressed)[-1].loss == pytest.approx(1 / 13)
    assert world.processes() == []


def test_events_come_in_time_order_and_progress_is_throttled(make: Make) -> None:
    world = make(settings=Settings(progress_s=0.4))
    world.submit(steps(50))
    world.until_ended()
    told = world.all(ev.Progressed)
    assert 2 <= len(told) <= 6
    assert told[-1].step == 50
    assert [event.at_s for event in told] == sorted(event.at_s for event in told)


def test_a_gang_too_short_to_be_seen_running_still_ran(world: World) -> None:
    world.submit("true")
    assert world.until_ended() == "finished"
    assert len(world.all(ev.GangRunning)) == 1


def test_a_program_without_heartbeats_runs_once_its_ranks_are_up_and_quiet(world: World) -> None:
    world.submit("sleep 1000", nodes=2)
    gang = world.until_running()
    assert gang.step is None
    assert gang.running_s is not None
    assert gang.started_s is not None
    assert gang.running_s - gang.started_s >= QUICK.quiet_s


def test_a_program_that_keeps_the_contract_runs_only_once_it_does_work(world: World) -> None:
    """It opens its heartbeat file first: being quiet is no sign of work any more."""
    world.submit(f'touch "$RACKSCALE_HEARTBEAT_FILE"; sleep 1; {steps(10_000)}')
    gang = world.until_running()
    assert gang.running_s is not None
    assert gang.started_s is not None
    assert gang.running_s - gang.started_s >= 1


def test_a_failing_program_is_retried_as_often_as_allowed(world: World) -> None:
    world.submit("exit 3", durability=Durability(max_restarts=2, retry_delay_s=0.1))
    assert world.until_ended() == "failed"
    assert [event.attempt for event in world.all(ev.GangEnded)] == [1, 2, 3]


def test_a_failure_names_the_rank_the_code_the_log_and_its_last_lines(world: World) -> None:
    world.submit("if [ $RANK = 1 ]; then train-it --fast; exit 5; fi; sleep 1000", nodes=2)
    world.until_ended()
    detail = world.state.ended["a"].detail
    assert "rank 1 exited with 5" in detail
    assert str(world.folder() / "rank-1.log") in detail


def test_a_missing_command_is_told_in_its_own_words(world: World) -> None:
    world.submit("train-it --fast")
    world.until_ended()
    assert "rank 0 exited with 127" in world.state.ended["a"].detail
    assert "train-it: command not found" in world.state.ended["a"].detail


def test_a_failing_setup_is_told_as_such(world: World) -> None:
    world.submit("true", setup="echo no wheel for you; exit 4")
    world.until_ended()
    detail = world.state.ended["a"].detail
    assert detail.startswith("setup exited with 4")
    assert "no wheel for you" in detail


def test_the_rank_that_failed_first_is_blamed(world: World) -> None:
    world.submit("sleep 0.$((3 - RANK)); exit $((10 + RANK))", nodes=3)
    world.until_ended()
    assert "rank 2 exited with 12" in world.state.ended["a"].detail


def test_a_job_without_a_program_fails_and_says_why(world: World) -> None:
    world.submit("true")
    world.until_ended()
    job = next(event.job for event in world.events if isinstance(event, ev.Submitted))
    world.tell(ev.Submitted(at_s=time.time(), job=msgspec.structs.replace(job, name="b", program=None)))
    assert world.until_ended("b") == "failed"
    assert "no program" in world.state.ended["b"].detail


def test_a_gang_whose_heartbeats_stop_is_killed_and_failed(make: Make) -> None:
    world = make(settings=msgspec.structs.replace(QUICK, hang_s=0.5))
    world.submit(f"{steps(3)}; sleep 1000", nodes=2)
    assert world.until_ended() == "failed"
    assert "no heartbeat for 0.5 s" in world.state.ended["a"].detail
    assert world.processes() == []


def test_a_program_that_never_sent_a_heartbeat_is_not_judged_by_them(make: Make) -> None:
    world = make(settings=msgspec.structs.replace(QUICK, hang_s=0.2))
    world.submit("sleep 1")
    assert world.until_ended() == "finished"


# -- leaving ---------------------------------------------------------------------------------------------------------


def test_a_victim_checkpoints_leaves_and_goes_on_where_it_was(world: World) -> None:
    world.submit(steps(30, 0.05), nodes=3)
    world.until(lambda: (world.state.gangs["a"].step or 0) >= 8)
    world.submit("sleep 0.5", name="urgent", nodes=2, priority="production")
    world.until_ended("urgent")
    assert world.until_ended() == "finished"
    left, finished = (event for event in world.all(ev.GangEnded) if event.gang == "a")
    assert (left.outcome, left.checkpointed, finished.outcome) == ("left", True, "finished")
    resumed = world.all(ev.GangRunning)[-1]
    assert resumed.step is not None
    assert resumed.step >= 8
    assert f"goes on at {resumed.step}" in world.log(0, "a", 2)


def test_a_program_without_a_handler_leaves_without_a_checkpoint(world: World) -> None:
    world.submit("sleep 1000; echo never", nodes=2)
    world.until_running()
    world.tell(ev.Cancelled(at_s=time.time(), job="a"))
    assert world.until_ended(timeout_s=4.5) == "cancelled"
    (left,) = world.all(ev.GangEnded)
    assert (left.outcome, left.checkpointed) == ("left", False)


def test_who_does_not_leave_is_killed_after_the_grace_period(world: World) -> None:
    world.submit(steps(10_000, 0.02, "--deaf"), nodes=2, durability=Durability(grace_s=0.4))
    world.until_running()
    began_s = time.time()
    world.tell(ev.Cancelled(at_s=began_s, job="a"))
    assert world.until_ended() == "cancelled"
    assert 0.4 <= time.time() - began_s < 4
    (left,) = world.all(ev.GangEnded)
    assert (left.checkpointed, left.detail) == (False, "killed after the grace period")
    assert world.processes() == []


def test_an_instance_that_is_stopped_is_killed_by_the_controller(world: World) -> None:
    """SIGSTOP stands for an instance program that can't do its part."""
    world.submit("sleep 1000", durability=Durability(grace_s=0.1))
    world.until_running()
    os.kill(world.pid(0), signal.SIGSTOP)
    world.tell(ev.Cancelled(at_s=time.time(), job="a"))
    assert world.until_ended() == "cancelled"
    assert world.processes() == []


def test_a_gang_may_be_cancelled_before_it_is_up(world: World) -> None:
    world.submit("sleep 1000", nodes=4)
    world.tell(ev.Cancelled(at_s=time.time(), job="a"))
    assert world.until_ended(timeout_s=4.5) == "cancelled"
    assert world.all(ev.NodeFailed) == []
    assert world.processes() == []


def test_a_drained_node_is_left(world: World) -> None:
    world.submit(steps(10_000))
    gang = world.until_running()
    (segment,) = gang.binding
    world.tell(ev.Drained(at_s=time.time(), domain=segment.domain, nodes=segment.nodes))
    moved = world.until_running(number=2)
    assert moved.binding != (segment,)
    assert world.all(ev.GangEnded)[0].checkpointed


# -- nodes -----------------------------------------------------------------------------------------------------------


def test_a_killed_instance_is_replaced_by_the_spare(make: Make) -> None:
    world = make(repair_s=0.5)
    world.submit(steps(10_000), nodes=3)
    world.until(lambda: world.all(ev.Checkpointed))
    os.killpg(world.pid(1), signal.SIGKILL)
    gang = world.until_running(number=2)
    assert [segment.nodes for segment in gang.binding] == [(0, 3, 2)]
    (failed,) = world.all(ev.NodeFailed)
    assert failed.nodes == (1,)
    resumed = world.all(ev.GangRunning)[-1].step
    assert resumed is not None
    assert resumed >= 5
    world.until(lambda: world.all(ev.NodeRepaired))
    assert world.state.failed == [0]
    assert len(world.processes()) == 6  # an instance program and a rank on each of three nodes


def test_the_surviving_ranks_are_dead_before_the_next_attempt_starts(world: World) -> None:
    """Two attempts must not write one checkpoint folder."""
    world.submit("trap '' TERM; echo $RACKSCALE_ATTEMPT $$ >> pids; sleep 1000 & wait; wait", nodes=2)
    world.until_running()
    os.killpg(world.pid(0), signal.SIGKILL)
    world.until_running(number=2)
    lines = [line.split() for line in (world.site / "pids").read_text().splitlines()]
    assert sorted(number for number, _ in lines) == ["1", "1", "2", "2"]
    left = [processes.find(int(pid)) for number, pid in lines if number == "1"]
    assert all(process is None or process.zombie for process in left)


def test_ranks_that_fail_because_a_peer_died_are_not_blamed(world: World) -> None:
    """Node rank 0 serves, node rank 1 fails as soon as the connection breaks."""
    world.submit(
        """
if [ $RANK = 0 ]; then exec python -c "
import os, socket, time
s = socket.create_server(('', int(os.environ['MASTER_PORT'])))
c, _ = s.accept(); time.sleep(1000)"
else exec python -c "
import os, socket, sys, time
while True:
    try: s = socket.create_connection((os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']))); break
    except OSError: time.sleep(0.01)
open('met', 'a').close(); s.recv(1); sys.exit('peer is gone')"
fi""",
        nodes=2,
    )
    world.until((world.site / "met").exists)
    os.killpg(world.pid(0), signal.SIGKILL)
    world.until_running(number=2)
    assert [event.nodes for event in world.all(ev.NodeFailed)] == [(0,)]
    assert world.all(ev.GangEnded) == []


def test_without_a_replacement_the_gang_waits_for_the_repair(make: Make) -> None:
    world = make(repair_s=1.0)
    world.submit(steps(10_000), nodes=4)
    world.until(lambda: world.all(ev.Checkpointed))
    os.killpg(world.pid(2), signal.SIGKILL)
    world.until_running(number=2)
    (ended,) = world.all(ev.GangEnded)
    assert (ended.outcome, ended.attempt) == ("left", 1)
    assert world.all(ev.NodeRepaired)[0].nodes == (2,)


def test_a_node_that_dies_while_its_gang_leaves(world: World) -> None:
    world.submit(steps(10_000, 0.02, "--deaf"), nodes=2)
    world.until_running()
    world.tell(ev.Cancelled(at_s=time.time(), job="a"))
    os.killpg(world.pid(1), signal.SIGKILL)
    assert world.until_ended(timeout_s=4.5) == "cancelled"
    assert [event.nodes for event in world.all(ev.NodeFailed)] == [(1,)]
    assert world.processes() == []


def test_what_escaped_from_a_dead_instance_is_ended_too(world: World) -> None:
    """torchrun puts its workers into sessions of their own."""
    world.submit("setsid sleep 1000 & sleep 1000", nodes=1)
    world.until_running()
    os.killpg(world.pid(0), signal.SIGKILL)
    world.until_running(number=2)
    assert len(world.processes()) == 4  # the second attempt's instance, shell and two sleeps


# -- services --------------------------------------------------------------------------------------------------------

SERVE = """
python -c "
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b'hello')
http.server.HTTPServer(('', int(os.environ['RACKSCALE_PORT'])), Handler).serve_forever()"
"""


def test_a_services_replicas_answer_on_ports_of_their_own(world: World) -> None:
    world.submit(SERVE, name="chat", kind="service", replicas=2)
    urls = {world.until_running(f"chat/{i}").url for i in (0, 1)}
    assert len(urls) == 2
    for url in urls:
        assert url is not None
        server = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
        server.request("GET", "/")
        assert server.getresponse().read() == b"hello"
        server.close()


def test_a_service_that_says_ready_is_believed(world: World) -> None:
    ready = """echo '{"at_s": '$(date +%s)', "kind": "ready"}' >> "$RACKSCALE_HEARTBEAT_FILE"; sleep 1000"""
    world.submit(ready, name="chat", kind="service")
    assert world.until_running("chat/0").url is not None


def test_a_service_that_does_not_listen_is_not_running(world: World) -> None:
    world.submit("sleep 2", name="chat", kind="service")
    world.until(lambda: world.all(ev.GangEnded))
    assert world.all(ev.GangRunning) == []


# -- what users bring ------------------------------------------------------------------------------------------------

ALL_REDUCE = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
value = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(value)
print("sum", value.item(), "of", dist.get_world_size())
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_an_unmodified_torchrun_script_runs_over_two_instances(world: World) -> None:
    pytest.importorskip("torch")
    (world.site / "train.py").write_text(ALL_REDUCE)
    world.submit("python train.py", nodes=2, ranks_per_node=1)
    assert world.until_ended(timeout_s=60) == "finished"
    assert [world.log(rank).strip() for rank in (0, 1)] == ["sum 3.0 of 2"] * 2


def test_programs_run_beside_the_documents_with_their_variables(world: World) -> None:
    (world.site / "sub").mkdir()
    world.submit("pwd; echo $COLOUR", workdir="sub", envs={"COLOUR": "red"})
    world.until_ended()
    assert world.log().split() == [str(world.site / "sub"), "red"]


def test_the_state_folder_is_its_owners_alone(world: World) -> None:
    assert (world.site / ".rackscale").stat().st_mode & 0o777 == 0o700


# -- the executor itself ---------------------------------------------------------------------------------------------


def test_polling_answers_soon_and_costs_little(world: World) -> None:
    world.submit("sleep 1000")
    world.until_running()
    began_s, cpu_s = time.monotonic(), time.process_time()
    for _ in range(10):
        (event,) = world.executor.poll(None)
        assert isinstance(event, ev.Ticked)
    assert 0.8 < time.monotonic() - began_s < 5
    assert time.process_time() - cpu_s < 0.1


def test_a_death_wakes_the_poll(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.submit("sleep 1000")
    world.until_running()
    monkeypatch.setattr(gangs, "WAKE_S", 600.0)
    threading.Timer(0.2, os.killpg, (world.pid(0), signal.SIGKILL)).start()
    assert [type(event) for event in world.executor.poll(None)] == [ev.NodeFailed]


def test_attempts_of_an_earlier_journal_are_not_mistaken_for_ours(make: Make) -> None:
    """The journal was lost and the files were not: attempt 1 ran before, and runs again."""
    make().submit("echo old")
    first = make()  # the same site, an empty state
    first.submit("echo new")
    assert first.until_ended() == "finished"
    assert first.log() == "new\n"
    assert (first.folder().with_name("1~1") / "spec-0.json").exists()


def test_killing_everything_leaves_nothing(world: World) -> None:
    world.submit("trap '' TERM; sleep 1000 & wait; wait", nodes=2)
    world.submit("setsid sleep 1000 & sleep 1000", name="b")
    world.until_running()
    world.until_running("b")
    world.executor.kill()
    assert world.processes() == []


def test_a_taken_port_is_not_given_out(world: World) -> None:
    with socket.create_server(("", 0)) as server:
        taken = server.getsockname()[1]
        ports, instance.PORTS = instance.PORTS, range(taken, taken + 2)
        try:
            assert instance.free_port(set()) == taken + 1
        finally:
            instance.PORTS = ports
