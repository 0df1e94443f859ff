"""Sentences for actions, events and quantities."""

from __future__ import annotations

from rackscale import events as ev
from rackscale.events import Action, Binding, Reason


def duration(seconds: float | None) -> str:
    """`41 s`, `9 min`, `2 h 10`, `3 d 4 h`; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d}"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def percent(share: float | None, digits: int = 1) -> str:
    """`93.5%`; a dash for None."""
    return "-" if share is None else f"{share:.{digits}%}"


def gpu_hours(gpu_s: float) -> str:
    """GPU-seconds as GPU-hours, with enough digits to mean something."""
    hours = gpu_s / 3600
    if hours >= 1000:
        return f"{hours:,.0f} GPU-h"
    return f"{hours:.1f} GPU-h" if hours >= 10 else f"{hours:.3g} GPU-h"


def place(binding: Binding) -> str:
    """`us-007/n00-n03`: nodes by domain, consecutive nodes as a range."""
    return ", ".join(f"{s.domain}/{named(s.nodes)}" for s in binding) or "nowhere"


def named(nodes: tuple[int, ...]) -> str:
    """`n00-n03+n07`: node numbers, consecutive ones as a range."""
    parts: list[list[int]] = []
    for node in sorted(nodes):
        if parts and node == parts[-1][-1] + 1:
            parts[-1].append(node)
        else:
            parts.append([node])
    return "+".join(f"n{p[0]:02d}" if len(p) == 1 else f"n{p[0]:02d}-n{p[-1]:02d}" for p in parts)


def action(it: Action) -> tuple[str, str, str]:
    """(verb, subject, sentence) for one action."""
    match it:
        case ev.Start():
            return "START", it.gang, f"on {place(it.binding)} ({ev.REASONS[it.reason.code]})"
        case ev.Restart():
            return "RESTART", it.gang, f"attempt {it.attempt} on {place(it.binding)} ({_why(it.reason)})"
        case ev.Preempt():
            return "LEAVE", it.gang, f"within {duration(it.grace_s)} ({_why(it.reason)}){_price(it.reason)}"
        case ev.Stop():
            return "STOP", it.gang, f"within {duration(it.grace_s)} ({_why(it.reason)})"
        case ev.Requeue():
            return "REQUEUE", it.gang, f"at the front ({_why(it.reason)}){_price(it.reason)}"
        case ev.Refuse():
            return "REFUSE", it.job, _why(it.reason)
        case _:
            return _about_room(it)


def _about_room(it: Action) -> tuple[str, str, str]:
    """(verb, subject, sentence) for what keeps, frees or takes away nodes."""
    match it:
        case ev.Claim():
            return "CLEAR", it.gang, f"{place(it.binding)} is held for it while victims leave"
        case ev.Unclaim():
            return "UNCLAIM", it.gang, _why(it.reason)
        case ev.Move():
            sentence = f"within {duration(it.grace_s)}, to {place(it.binding)} ({_why(it.reason)})"
            return "MOVE", it.gang, sentence + _price(it.reason)
        case ev.Reserve():
            return "RESERVE", it.gang, f"{', '.join(dict.fromkeys(it.domains))} ({_why(it.reason)})"
        case ev.Unreserve():
            return "UNRESERVE", it.gang, _why(it.reason)
        case ev.Hold():
            return "HOLD", it.booking, f"{place(it.binding)} ({_why(it.reason)})"
        case ev.Free():
            return "FREE", it.booking, _why(it.reason)
        case ev.Close() | ev.Open():
            verb = "CLOSE" if isinstance(it, ev.Close) else "OPEN"
            nodes = "all nodes" if it.nodes is None else named(it.nodes)
            return verb, it.domain, f"{nodes} ({_why(it.reason)})"
        case _:
            raise AssertionError(f"no words for {it}")


def _why(reason: Reason) -> str:
    text = ev.REASONS[reason.code]
    if reason.code == "preempted-for":
        return f"its nodes are needed by {reason.for_gang}, and nothing cheaper to stop was found"
    if reason.domain and reason.node is not None:
        return f"{text}: {reason.domain}/n{reason.node:02d}"
    return text


def _price(reason: Reason) -> str:
    total = reason.lost_gpu_s + reason.restart_gpu_s + reason.penalty_gpu_s
    if not total:
        return ""
    return f"; at risk {gpu_hours(reason.lost_gpu_s)}, restart {gpu_hours(reason.restart_gpu_s)}"


def happened(event: ev.Event) -> str | None:
    """One line for an event, or None for those nobody wants to read one by one."""
    match event:
        case ev.Submitted():
            shape = event.job.shape
            return f"{event.job.name} submitted: {event.job.kind}, {shape.segments} x {shape.nodes_per_segment} nodes"
        case ev.Cancelled():
            return f"{event.job} cancelled"
        case ev.NodeFailed() | ev.NodeRepaired() | ev.Drained() | ev.Undrained():
            verb = {
                ev.NodeFailed: "failed", ev.NodeRepaired: "repaired",
                ev.Drained: "draining", ev.Undrained: "in use again",
            }[type(event)]  # fmt: skip
            nodes = "" if event.nodes is None else f"/{named(event.nodes)}"
            cause = f" ({event.cause})" if isinstance(event, ev.NodeFailed) else ""
            return f"{event.domain}{nodes} {verb}{cause}"
        case ev.GangRunning():
            at = f" from step {event.step}" if event.step else ""
            url = f" at {event.url}" if event.url else ""
            return f"{event.gang} attempt {event.attempt} runs{at}{url}"
        case ev.GangEnded():
            saved = ", checkpointed" if event.checkpointed else ""
            detail = f": {event.detail.splitlines()[0]}" if event.detail else ""
            return f"{event.gang} attempt {event.attempt} {event.outcome}{saved}{detail}"
        case ev.Checkpointed():
            return None if event.step is None else f"{event.gang} checkpointed at step {event.step}"
        case _:
            return None
