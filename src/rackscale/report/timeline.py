"""A picture of what ran where: one row per node, time to the right, as a self-contained SVG."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from xml.sax.saxutils import escape

from rackscale import events as ev
from rackscale.fleet.gangs import Status
from rackscale.fleet.state import FleetState
from rackscale.report.words import duration

PALETTE = (
    "#3b6fb6", "#d98032", "#4f9d5d", "#b65aa6", "#8a7a3c", "#3fa3a3", "#c2545c", "#6f63b5", "#7f8c3a", "#5b8bd0",
)  # fmt: skip
"""Colours of gangs, in order of their first start."""
DOWN = "#c0392b"
ROW, LABEL, GAP, TOP, FOOT = 14, 150, 10, 34, 48
"""Pixels: a node's row, the labels' column, the gap between domains, head and foot."""


class Bar(NamedTuple):
    """A node held by an attempt of a gang, or down (gang "")."""

    domain: str
    node: int
    start_s: float
    end_s: float
    gang: str
    attempt: int
    working: bool
    """False while the attempt starts or leaves."""


def bars(events: Iterable[ev.Event]) -> tuple[list[Bar], FleetState]:
    """Every interval in which a node was held or down, from the same fold that the scheduler uses."""
    state = FleetState()
    open_: dict[tuple[str, int], Bar] = {}
    done: list[Bar] = []
    for event in events:
        touched = _touched(state, event)
        state.fold(event)
        touched |= _touched(state, event)
        for name in touched:
            now = _domain_bars(state, name)
            for node in range(state.domains[state.index[name]].nodes):
                key = (name, node)
                before, after = open_.get(key), now.get(node)
                if before and (after is None or before[4:] != after[4:]):
                    done.append(before._replace(end_s=state.now_s))
                    del open_[key]
                if after and key not in open_:
                    open_[key] = after
    done += [bar._replace(end_s=state.now_s) for bar in open_.values()]
    return [bar for bar in done if bar.end_s > bar.start_s], state


def _touched(state: FleetState, event: ev.Event) -> set[str]:
    """Domains whose picture the event may change."""
    match event:
        case ev.Decided():
            names = {getattr(a, "gang", "") for a in event.plan.actions}
            planned = {
                s.domain
                for a in event.plan.actions
                if isinstance(a, ev.Start | ev.Restart)
                for s in a.binding
            }
            held = {s.domain for n in names if n in state.gangs for s in state.gangs[n].binding}
            return planned | held
        case ev.GangRunning() | ev.GangEnded():
            gang = state.gangs.get(event.gang)
            return {s.domain for s in gang.binding} if gang else set()
        case ev.NodeFailed() | ev.NodeRepaired():
            return {event.domain}
        case _:
            return set()


def _domain_bars(state: FleetState, name: str) -> dict[int, Bar]:
    d = state.index[name]
    found: dict[int, Bar] = {}
    for gang_name, mask in state.tenants.on[d].items():
        gang = state.gangs[gang_name]
        working = gang.status is Status.RUNNING
        for node in range(state.domains[d].nodes):
            if mask >> node & 1:
                found[node] = Bar(name, node, state.now_s, 0.0, gang_name, gang.attempt, working)
    for node in range(state.domains[d].nodes):
        if state.failed[d] >> node & 1:
            found[node] = Bar(name, node, state.now_s, 0.0, "", 0, False)
    return found


def svg(events: Iterable[ev.Event], *, width: int = 1100, max_domains: int = 16, title: str = "") -> str:
    """The timeline as SVG text; the first `max_domains` domains that held anything."""
    items, state = bars(events)
    if not items:
        return _page(width, TOP + FOOT, [_text(10, 20, "nothing ran")])
    start, end = min(b.start_s for b in items), max(b.end_s for b in items)
    used = {b.domain for b in items}
    domains = [spec for spec in state.domains if spec.name in used][:max_domains]
    scale = (width - LABEL - 20) / max(end - start, 1e-9)
    gangs = list(dict.fromkeys(b.gang for b in sorted(items, key=lambda b: b.start_s) if b.gang))
    colour = {gang: PALETTE[i % len(PALETTE)] for i, gang in enumerate(gangs)}
    parts = [
        _text(10, 20, title or f"{len(items)} intervals over {duration(end - start)}", size=14, weight="600")
    ]
    y = float(TOP)
    for spec in domains:
        parts.append(_text(10, y + 11, spec.name))
        for node in range(spec.nodes):
            parts.append(_rect((LABEL, y, width - LABEL - 20, ROW - 2), "#dddddd", 0.6))
            for bar in items:
                if bar.domain == spec.name and bar.node == node:
                    x, w = LABEL + (bar.start_s - start) * scale, (bar.end_s - bar.start_s) * scale
                    fill = colour[bar.gang] if bar.gang else DOWN
                    label = f"{bar.gang} attempt {bar.attempt}" if bar.gang else "failed"
                    opacity = 1.0 if bar.working or not bar.gang else 0.45
                    parts.append(
                        _rect((x, y, max(w, 1.0), ROW - 2), fill, opacity, f"{label}, {duration(w / scale)}")
                    )
            y += ROW
        y += GAP
    parts += _axis(start, end, scale, y)
    parts += _legend(colour, y + 30, width)
    return _page(width, y + FOOT, parts)


def _axis(start: float, end: float, scale: float, y: float) -> list[str]:
    step = next(
        s
        for s in (5, 10, 30, 60, 300, 900, 3600, 14400, 86400, 864000)
        if (end - start) / s <= 12 or s == 864000
    )
    return [
        _text(LABEL + i * step * scale, y + 8, duration(i * step) if i else "0", size=10)
        for i in range(int((end - start) / step) + 1)
    ]


def _legend(colour: dict[str, str], y: float, width: int) -> list[str]:
    parts: list[str] = []
    x = float(LABEL)
    for name, fill in [*colour.items(), ("node down", DOWN)]:
        if x + 9 * len(name) > width - 40:
            parts.append(_text(x, y + 10, "..."))
            break
        parts += [_rect((x, y + 1, 10, 10), fill, 1.0), _text(x + 14, y + 10, name)]
        x += 30 + 7 * len(name)
    return parts


def _rect(box: tuple[float, float, float, float], fill: str, opacity: float, title: str = "") -> str:
    x, y, w, h = box
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="2" fill="{fill}"'
        f' opacity="{opacity}">{inner}</rect>'
    )


def _text(x: float, y: float, text: str, *, size: int = 11, weight: str = "400") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}">{escape(text)}</text>'


def _page(width: int, height: float, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}"'
        f' viewBox="0 0 {width} {height:.0f}" font-family="ui-sans-serif, Helvetica, Arial, sans-serif">'
        '<rect width="100%" height="100%" fill="#fbfbf8"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])
