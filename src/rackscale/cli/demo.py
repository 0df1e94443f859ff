"""`rackscale demo`: a real fleet on this machine, and whether it did what the plan said."""

from __future__ import annotations

import contextlib
import json as json_module
import os
import shutil
import signal
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.rule import Rule

from rackscale import audit as auditing
from rackscale.capacity.ledger import Ledger
from rackscale.cli import jobs
from rackscale.cli.output import JsonOption, print_json
from rackscale.cli.running import Engine, bring_up, take_down
from rackscale.cli.site import Site, picture
from rackscale.cli.watch import Watcher
from rackscale.commands import Submit
from rackscale.errors import RackscaleError
from rackscale.fleet.gangs import Status
from rackscale.fleet.state import FleetState
from rackscale.report import tables, timeline, words

PRODUCTION, TRAINING, SERVICE = "exp-812", "tiny-llama", "chat"
QUESTION = "What does a spare do?"
REPAIR_S = 20.0
STEP_S = 240.0
"""The longest that one step of the story may take."""


def register(app: typer.Typer) -> None:
    """Add this group's verb."""
    app.command(rich_help_panel="Without a fleet")(demo)


def demo(
    on: Annotated[Engine, typer.Option(help="What runs the gangs.")] = Engine.local,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Use this folder and leave everything in it.")
    ] = None,
    picture_file: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.svg", help="Draw what ran where.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run a real fleet of 2 emulated NVLink domains x 4 nodes here: train, preempt, lose a node, resume, serve, audit.

    Everything in it really happens: torch training, checkpoints, kill -9, HTTP. It cleans up after itself, also on
    Ctrl-C. Examples: `rackscale demo`, `rackscale demo --on ray --json`, `rackscale demo --keep /tmp/demo`
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=json)
    with _site(keep) as folder:
        story = Story(Site(folder), on, console, quiet=json)
        try:
            result = story.tell()
            if picture_file is not None:
                picture_file.write_text(
                    timeline.svg(story.watcher.events, title=f"rackscale demo --on {on.value}")
                )
        except RackscaleError:
            story.last_words()
            raise
        finally:
            story.clean_up()
    if json:
        print_json(result)


@contextlib.contextmanager
def _site(keep: Path | None) -> Iterator[Path]:
    """A folder with the demo's documents; a temporary one unless it is to be kept."""
    folder = Path(tempfile.mkdtemp(prefix="rackscale-demo-")) if keep is None else keep
    folder.mkdir(parents=True, exist_ok=True)
    if Site(folder).has_journal:
        raise RackscaleError(f"{folder} holds an earlier run", hint="choose another folder for --keep")
    source = resources.files("rackscale") / "examples" / "demo"
    for name in ("site.yaml", "work.yaml", "production.yaml", "chat.yaml"):
        (folder / name).write_text((source / name).read_text())
    try:
        yield folder
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


class Story:
    """The steps, in order. Each waits for the fleet to do what it says."""

    def __init__(self, site: Site, on: Engine, console: Console, *, quiet: bool) -> None:
        self.site, self.on, self.console, self.quiet = site, on, console, quiet
        self.result: dict[str, Any] = {"on": on.value}
        self.began_s = time.monotonic()
        self._step = 0
        self.watcher: Watcher

    def tell(self) -> dict[str, Any]:
        self.start()
        self.submit("work.yaml", "Submit training and batch work")
        self.until("work runs and has checkpointed", _busy)
        self.plan_production()
        self.until(f"{PRODUCTION} works on the cleared domain", lambda s: _works(s, PRODUCTION, 1))
        self.until(f"{PRODUCTION} has a checkpoint to lose nothing before", lambda s: _saved(s, PRODUCTION))
        self.lose_a_node()
        self.serve()
        self.until(f"{PRODUCTION} ends", lambda s: PRODUCTION in s.ended)
        self.account()
        return self.result

    def say(self, title: str) -> None:
        self._step += 1
        if not self.quiet:
            elapsed = time.monotonic() - self.began_s
            self.console.print()
            self.console.print(Rule(f"{self._step}  {title}  [dim]({elapsed:.0f} s)[/dim]", align="left"))

    def until(self, what: str, true: Any) -> None:
        self.watcher.until(what, true, timeout_s=STEP_S)

    # -- steps -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.say(f"Start a fleet on {self.on.value}: 2 NVLink domains x 4 nodes, one spare in each")
        bring_up(self.site.path, self.on, address=None, repair_s=REPAIR_S)
        self.watcher = Watcher(self.site, self.console, quiet=self.quiet)

    def submit(self, name: str, title: str) -> jobs.Made:
        self.say(title)
        seen = picture(self.site, [self.site.path / name])
        made = jobs.make(seen, seen.documents.jobs)
        request = Submit(jobs=seen.documents.jobs, expected=made.actions, forecasts=made.forecasts)
        self.site.ask(request).check()
        self.watcher.read()
        return made

    def plan_production(self) -> None:
        title = f"Plan {PRODUCTION}: 3 nodes in one domain, and no domain has them. Then apply the plan"
        self.say(title)
        seen = picture(self.site, [self.site.path / "production.yaml"])
        made = jobs.make(seen, seen.documents.jobs)
        self.result["plan"] = made
        if not self.quiet:
            self.console.print(jobs.drawn(made, seen))
            self.console.print()
        request = Submit(jobs=seen.documents.jobs, expected=made.actions, forecasts=made.forecasts)
        self.site.ask(request).check()

    def lose_a_node(self) -> None:
        gang = self.watcher.state.gangs[PRODUCTION]
        segment = gang.binding[-1]
        node = segment.nodes[-1]
        self.say(f"kill -9 everything on {segment.domain}/n{node:02d}, under {PRODUCTION}")
        again = (gang.name, gang.attempt + 1)
        killed_s = time.time()
        kill_node(self.site, self.on, gang.name, gang.attempt, segment.domain, node)
        self.until(f"{PRODUCTION} trains again", lambda _: again in self.watcher.runs)
        resumed = self.watcher.runs[again]
        self.result["recovery"] = {"seconds": resumed.at_s - killed_s, "from_step": resumed.step}
        if not self.quiet:
            text = f"from kill -9 to the first step beyond checkpoint {resumed.step}: {resumed.at_s - killed_s:.1f} s"
            self.console.print(text, style="green", highlight=False)

    def serve(self) -> None:
        self.until(f"{TRAINING} has written its model", lambda s: TRAINING in s.ended)
        self.submit("chat.yaml", f"Serve the model that {TRAINING} trained, and ask it")
        self.until("the service answers", lambda s: _works(s, f"{SERVICE}/0", 1))
        url = self.watcher.state.gangs[f"{SERVICE}/0"].url
        assert url is not None
        answer = complete(url, QUESTION)
        self.result["completion"] = {"url": url, "question": QUESTION, "answer": answer}
        if not self.quiet:
            self.console.print(f"{url}  {QUESTION!r} -> {answer!r}", markup=False, style="green")

    def account(self) -> None:
        self.say("What the plans said, and what happened")
        rows = auditing.audit(self.watcher.events)
        score = auditing.score(rows)
        ledger = Ledger()
        for event in self.watcher.events:
            ledger(event)
        hours: defaultdict[str, float] = defaultdict(float)
        for row in ledger.rows():
            hours[f"{row.state} ({row.cause})" if row.cause else row.state] += row.gpu_h
        wall_s = time.monotonic() - self.began_s
        self.result |= {"audit": rows, "score": score, "gpu_hours": dict(hours), "wall_s": wall_s}
        if not self.quiet:
            self.console.print(tables.audit(rows, score))
            self.console.print()
            self.console.print(tables.hours(dict(hours)))
            self.console.print(f"\nall of it in {words.duration(wall_s)}", style="bold")

    def last_words(self) -> None:
        """What the logs end with, when a step fails."""
        for log in sorted((self.site.folder / "gangs").rglob("rank-0.log"))[-4:]:
            lines = log.read_text(errors="replace").splitlines()[-8:]
            self.console.print(f"-- {log.relative_to(self.site.folder)}", *lines, sep="\n", markup=False)

    def clean_up(self) -> None:
        """Stop everything that was started, also when Ctrl-C came in the middle of it."""
        if hasattr(self, "watcher"):
            self.watcher.close()
        if self.site.running:
            if not self.quiet:
                self.console.print("stopping the fleet ...", style="dim")
            take_down(self.site.path, stop_gangs=True)


def _busy(state: FleetState) -> bool:
    """All that was submitted runs, and what can checkpoint has, a moment ago."""
    gangs = state.gangs.values()
    running = all(gang.status is Status.RUNNING for gang in gangs)
    saved = all(gang.checkpoint_s is not None for gang in gangs if state.jobs[gang.job].kind == "training")
    return bool(state.gangs) and running and saved


def _works(state: FleetState, name: str, attempt: int) -> bool:
    gang = state.gangs.get(name)
    return gang is not None and gang.status is Status.RUNNING and gang.attempt >= attempt


def _saved(state: FleetState, name: str) -> bool:
    gang = state.gangs.get(name)
    return gang is not None and gang.checkpoint_s is not None and gang.checkpoint_s > (gang.running_s or 0.0)


def kill_node(site: Site, on: Engine, gang: str, attempt: int, domain: str, node: int) -> None:
    """Kill an emulated node the way a power cut would. Raises RackscaleError if nothing of it runs."""
    if on is Engine.ray:
        from rackscale.runtime.ray.marks import kill_node as cut

        cut(site.path, domain, node)
        return
    from rackscale.programs import attempt as attempts

    for path in site.attempt_folder(gang, attempt).glob("spec-*.json"):
        spec = attempts.read_spec(path)
        claim = attempts.read_claim(spec)
        if (spec.domain, spec.node) == (domain, node) and claim is not None:
            os.killpg(claim.pid, signal.SIGKILL)
            return
    raise RackscaleError(f"no process of {gang} runs on {domain}/n{node:02d}")


def complete(url: str, question: str) -> str:
    """One chat completion from an OpenAI-compatible endpoint."""
    body = {
        "model": SERVICE,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 48,
        "temperature": 0,
    }
    request = urllib.request.Request(  # noqa: S310  # our own service on this machine
        f"{url.rstrip('/').removesuffix('/v1')}/v1/chat/completions",
        data=json_module.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        answer = json_module.load(response)
    text = answer["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text.strip()
