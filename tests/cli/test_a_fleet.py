"""A real fleet on `local`, asked and told through the command line alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.state import FleetState
from rackscale.journal import Journal, location, writer
from rackscale.programs import processes
from rackscale.programs.attempt import read_claim, read_spec
from tests.cli.conftest import Answer, end, loop, make_site, rackscale
from tests.conftest import Eventually
from tests.runtime.world import of_site


class Fleet:
    """A site whose controller runs; the verbs are told where it is."""

    def __init__(self, site: Path) -> None:
        self.site = site

    def __call__(self, *arguments: object, code: int | None = 0) -> Answer:
        return rackscale(*arguments, "--site", self.site, code=code)

    @property
    def state(self) -> FleetState:
        """What the journal says: cheaper to ask again and again than a process."""
        with Journal.open(location(self.site)) as journal:
            return journal.load()

    def runs(self, name: str, *, attempt: int = 1) -> Gang | None:
        """The gang's record, if it runs."""
        gang = self.state.gangs.get(name)
        return gang if gang and gang.status is Status.RUNNING and gang.attempt == attempt else None

    def ended(self, name: str) -> str | None:
        found = self.state.ended.get(name)
        return None if found is None else found.outcome


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    site = make_site(tmp_path_factory.mktemp("fleet"))
    assert "drives 2 NVLink domains on local" in rackscale("up", site).out
    yield Fleet(site)
    end(site)


def test_a_job_is_applied_explained_logged_cancelled_and_audited(
    fleet: Fleet, tmp_path: Path, eventually: Eventually
) -> None:
    applied = fleet("apply", loop(tmp_path, "life"))
    assert "START" in applied.out
    assert applied.out.endswith("submitted 1 job\n")
    eventually(lambda: fleet.runs("life"), within_s=30)
    assert fleet("apply", loop(tmp_path, "life")).out.endswith("1 job already submitted\n")
    (reason,) = fleet("why", "life", "--json").json
    assert (reason["gang"], reason["status"]) == ("life", "running")
    assert "runs on c/us-000" in fleet("why", "life").out
    (holder,) = fleet("why", "us-000", "--json").json["room"]["held_by"]
    assert holder["gang"] == "life"
    assert (
        "1 node free to gangs beside 0 spares; 0 out of use\n  life holds 1 node,"
        in fleet("why", "us-000").out
    )
    assert "life holds it, expected to end in" in fleet("why", "us-000/n00").out
    assert fleet("why", "us-000/n01").out == "c/us-000/n01  FREE\n  it is free\n"
    hint = fleet("why", "lif", code=1).err
    assert hint == (
        "rackscale: there is no job, NVLink domain, node, booking or maintenance 'lif'; did you mean 'life'?\n"
    )
    shown = fleet("status", "--json").json
    assert shown["controller"]
    assert [(gang["name"], gang["status"]) for gang in shown["state"]["gangs"]] == [("life", "running")]
    assert "c/us-000" in fleet("status").out
    lines = fleet("logs", "life", "--rank", 0, "-n", 3).out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("turn ") and line.endswith(" of life") for line in lines)
    assert "told to stop" in fleet("cancel", "life").out
    eventually(lambda: fleet.ended("life") == "cancelled")
    assert fleet("cancel", "life").out == "life has ended (cancelled)\n"
    (row,) = (row for row in fleet("audit", "--json").json["jobs"] if row["job"] == "life")
    assert row["outcome"] == "cancelled"
    assert row["forecast"]["end_s"] == pytest.approx(60, abs=5)
    assert row["actual"]["end_s"] is not None
    assert "life" in fleet("audit").out


def test_logs_are_followed_until_the_end(fleet: Fleet, tmp_path: Path) -> None:
    fleet("apply", loop(tmp_path, "short", turns=15))
    followed = fleet("logs", "short", "-f", "--rank", 0, "-n", 100).out.splitlines()
    assert followed == [f"turn {turn} of short" for turn in range(1, 16)]
    assert fleet.ended("short") == "finished"
    planned = fleet("plan", tmp_path / "short.yaml")
    assert "short will run again: finished" in planned.out
    (again,) = fleet("plan", tmp_path / "short.yaml", "--json").json["again"]
    assert (again["job"], again["outcome"]) == ("short", "finished")
    applied = fleet("apply", tmp_path / "short.yaml").out
    assert "short will run again: finished" in applied
    assert "submitted 1 job (again: short, finished" in applied
    fleet("cancel", "short")


def test_a_plan_that_no_longer_holds_is_refused_and_both_are_shown(fleet: Fleet, tmp_path: Path) -> None:
    saved = tmp_path / "plan.json"
    before = fleet.state.snapshot()
    planned = fleet("plan", loop(tmp_path, "planned", nodes=2), "--out", saved, "--json").json
    assert planned["live"]
    assert [action["type"] for action in planned["actions"]] == ["Start"]
    assert fleet.state.snapshot() == before
    fleet("apply", loop(tmp_path, "first-come", nodes=2))
    refused = fleet("apply", "--plan", saved, code=1)
    assert "the state moved since the plan was made" in refused.err
    was, now = refused.err.split("now:")
    assert "on c/us-000/n00-n01" in was
    assert "on c/us-001/n00-n01" in now
    drifted = fleet("apply", "--plan", saved, "--json", code=1).json
    assert drifted["outcome"] == "drifted"
    assert drifted["expected"] != drifted["actual"]
    assert "planned" not in fleet.state.gangs
    fleet("plan", tmp_path / "planned.yaml", "--out", saved)
    assert fleet("apply", "--plan", saved).out == "submitted 1 job\n"
    fleet("cancel", "first-come", "planned")


def test_a_drain_is_planned_and_done_and_taken_back(
    fleet: Fleet, tmp_path: Path, eventually: Eventually
) -> None:
    fleet("apply", loop(tmp_path, "guest", nodes=2))
    home = eventually(lambda: fleet.runs("guest"), within_s=30).binding[0].domain
    planned = fleet("plan", "--drain", home, "--json").json["actions"]
    assert [(action["type"], action["gang"]) for action in planned] == [("Preempt", "guest")]
    assert "1 gang must leave" in fleet("drain", home).out
    assert fleet("drain", home, "--json").json["outcome"] == "unchanged"
    again = eventually(lambda: fleet.runs("guest", attempt=2), within_s=30)
    assert again.binding[0].domain != home
    assert "no longer drained" in fleet("undrain", home).out
    fleet("cancel", "guest")


def test_a_drain_by_a_time_lets_a_gang_go_on_until_then(
    fleet: Fleet, tmp_path: Path, eventually: Eventually
) -> None:
    fleet("apply", loop(tmp_path, "patient", nodes=2))
    home = eventually(lambda: fleet.runs("patient"), within_s=30).binding[0].domain
    planned = fleet("plan", "--drain", home, "--at", "6s", "--json").json
    assert planned["actions"] == []
    assert [moved["job"] for moved in planned["moved"]] == ["patient"]
    assert planned["moved"][0]["start_s"] > planned["at_s"] + 3
    assert "1 gang must leave within" in fleet("drain", home, "--by", "6s").out
    assert fleet.runs("patient") is not None
    again = eventually(lambda: fleet.runs("patient", attempt=2), within_s=30)
    assert again.binding[0].domain != home
    fleet("undrain", home)
    fleet("cancel", "patient")


def test_nodes_are_booked_and_maintained_and_given_back(
    fleet: Fleet, tmp_path: Path, eventually: Eventually
) -> None:
    file = tmp_path / "review.yaml"
    file.write_text(
        "kind: Booking\nname: review\nqueue: research\nnodes: 2\nfrom: in 0s\nuntil: in 1h\n"
        "---\nkind: Maintenance\nname: fans\ndomain: us-001\nnodes: [1]\nfrom: in 2h\nuntil: in 3h\n"
    )
    applied = fleet("apply", file).out
    assert "planned fans on c/us-001/n01, which begins in 2 h 00 and lasts 60 min" in applied
    assert "booked review, which begins at once and lasts 60 min" in applied
    [kept] = eventually(lambda: fleet.state.machines.calendar.holding.get("review"), within_s=30)
    assert f"its nodes are kept on {kept.domain}" in fleet("why", "review").out
    assert fleet("why", "@review", "--json").json["status"] == "kept"
    assert "maintenance of c/us-001/n01: it begins in 2 h 00" in fleet("why", "fans").out
    assert [plan["name"] for plan in fleet("why", "--json").json] == ["review", "fans"]
    assert "fans" in fleet("status").out
    inside = loop(tmp_path, "inside", nodes=2)
    inside.write_text(inside.read_text() + "booking: review\n")
    fleet("apply", inside)
    assert eventually(lambda: fleet.runs("inside"), within_s=30).binding[0].domain == kept.domain
    assert fleet("unbook", "revew", code=1).err.strip().endswith("did you mean 'review'?")
    assert "1 gang must leave" in fleet("unbook", "review").out
    eventually(lambda: fleet.state.gangs["inside"].status is Status.WAITING, within_s=30)
    fleet("cancel", "inside")
    assert "called off fans" in fleet("unmaintain", "fans").out
    twice = ("maintain", "us-000/n01", "--from", "1h", "--until", "2036-12-01T02:00Z", "--name", "psu")
    assert fleet(*twice, "--json").json["outcome"] == "done"
    assert "psu is planned already, which begins in 60 min" in fleet(*twice).out
    other = ("maintain", "us-000/n00", "--from", "1h", "--until", "2h", "--name", "psu")
    assert "call it off first: rackscale unmaintain psu" in fleet(*other, code=1).err
    fleet("unmaintain", "psu")
    later = fleet("book", "--name", "later", "--nodes", 2, "--from", "1h", "--until", "2h", "--json").json
    assert later["outcome"] == "done"
    assert (
        "no cluster could ever hold 1 x 3"
        in fleet("book", "--name", "x", "--nodes", 3, "--until", "2h", code=1).err
    )
    fleet("unbook", "later")


def test_names_that_do_not_exist_get_a_suggestion(fleet: Fleet, tmp_path: Path) -> None:
    fleet("apply", loop(tmp_path, "known"))
    for verb in ("why", "logs", "cancel"):
        assert "did you mean 'known'?" in fleet(verb, "knwon", code=1).err
    assert "did you mean 'c/us-001'?" in fleet("drain", "c/us-010", code=1).err
    unknown = loop(tmp_path, "unknown-queue")
    unknown.write_text(unknown.read_text().replace("queue: research", "queue: reserch"))
    assert "did you mean 'research'?" in fleet("apply", unknown, code=1).err
    fleet("cancel", "known")


def test_a_service_is_known_by_its_job_also_when_it_has_ended(
    fleet: Fleet, tmp_path: Path, eventually: Eventually
) -> None:
    service = tmp_path / "web.yaml"
    service.write_text(
        "kind: Service\nname: web\nqueue: research\nnodes: 1\nreplicas: 2\nrestart_time: 1s\n"
        "run: python -m http.server $RACKSCALE_PORT --bind 127.0.0.1\n"
    )
    fleet("apply", service)
    running = eventually(lambda: fleet.runs("web/0") and fleet.runs("web/1"), within_s=30)
    assert running.url is not None
    assert running.url in fleet("status").out
    assert "told to stop" in fleet("cancel", "web").out
    eventually(lambda: fleet.ended("web/0") and fleet.ended("web/1"))
    assert "Serving HTTP" in fleet("logs", "web").out
    assert {answer["gang"] for answer in fleet("why", "web", "--json").json} == {"web/0", "web/1"}


def test_one_controller_a_site(fleet: Fleet) -> None:
    assert "runs here already" in rackscale("up", fleet.site, code=1).err


def test_a_killed_controller_comes_back_and_the_job_goes_on(
    site: Path, tmp_path: Path, eventually: Eventually
) -> None:
    pid = rackscale("up", site, "--json").json["pid"]
    fleet = Fleet(site)
    fleet("apply", loop(tmp_path, "survivor", nodes=2))
    before = eventually(lambda: fleet.runs("survivor"), within_s=30)
    claims = [read_claim(read_spec(path)) for path in (site / ".rackscale" / "gangs").rglob("spec-*.json")]

    os.kill(pid, signal.SIGKILL)
    eventually(lambda: writer(location(site)) is None)
    assert not fleet("status", "--json").json["controller"]
    assert "no controller runs" in fleet("status").out
    assert "no controller runs" in fleet("cancel", "survivor", code=1).err
    assert rackscale("up", site, "--json").json["pid"] != pid

    after = fleet.runs("survivor")
    assert after is not None
    assert after.binding == before.binding
    assert len(claims) == 2
    for claim in claims:
        assert claim is not None
        there = processes.find(claim.pid)
        assert there is not None
        assert there.started_ticks == claim.started_ticks
    assert "so have all gangs" in fleet("down").out
    assert of_site(site) == []
    assert fleet.ended("survivor") == "cancelled"
    assert "no controller runs" in fleet("down", code=1).err


def test_up_takes_the_site_s_bookings_and_maintenance(site: Path, tmp_path: Path) -> None:
    plans = site / "plans.yaml"
    plans.write_text("kind: Booking\nname: review\nqueue: research\nnodes: 2\nfrom: 10:00\nuntil: in 2h\n")
    assert "a live site does not know since when this counts" in rackscale("up", site, code=1).err
    assert not (site / ".rackscale").exists()
    plans.write_text(
        "kind: Booking\nname: review\nqueue: research\nnodes: 2\nfrom: in 1h\nuntil: in 2h\n"
        "---\nkind: Maintenance\nname: fans\ndomain: us-001\nnodes: [1]\nfrom: in 1h\nuntil: in 3h\n"
    )
    (site / "old.yaml").write_text(
        "kind: Booking\nname: over\nnodes: 2\nfrom: 2025-12-01T02:00Z\nuntil: 2025-12-01T03:00Z\n"
    )
    first = rackscale("up", site).out
    assert "planned fans on c/us-001/n01, which begins in 60 min and lasts 2 h 00" in first
    assert "booked review, which begins in 60 min and lasts 60 min" in first
    assert "over" not in first
    fleet = Fleet(site)
    assert [plan["name"] for plan in fleet("why", "--json").json] == ["fans", "review"]
    assert "review is booked already" in fleet("apply", plans).out
    fleet("down")
    plans.write_text(
        plans.read_text() + "---\nkind: Booking\nname: more\nnodes: 2\nfrom: in 1h\nuntil: in 2h\n"
    )
    answer = rackscale("up", site, code=1)
    assert "review is booked already" in answer.out
    assert "more: there is no room for 1 x 2 nodes at that time beside review and fans" in answer.err
    assert "the next time that fits begins in" in answer.err
    assert fleet("status", "--json").json["controller"]
