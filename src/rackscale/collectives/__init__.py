"""How long a collective takes: over NVLink inside a domain, between the domains under a leaf switch, between leaves.

Every function is an array program: each argument may be a float64 array, and they broadcast.
"""

from rackscale.collectives.tiers import Network, Tier, network
from rackscale.collectives.times import KINDS, Array, Kind, Number, dispatch, seconds

__all__ = ["KINDS", "Array", "Kind", "Network", "Number", "Tier", "dispatch", "network", "seconds"]
