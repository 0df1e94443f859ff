"""The decision core: `decide(state, now_s) -> Plan`, pure and deterministic."""

from rackscale.scheduler.decide import decide

__all__ = ["decide"]
