"""How many GPUs of each NVLink domain a job takes."""

from __future__ import annotations

from rackscale import catalog


def domain_gpus(system: str, gpus: int) -> int:
    """GPUs that a job of `gpus` takes of each NVLink domain of `system`.

    All in one domain where they fit. A larger job takes equal segments of whole nodes: as wide as divide it, or a power
    of two if that is at least half as wide, since groups of ranks are powers of two and what a rack has beyond them (8
    of 72 GPUs) is spare.
    """
    found = catalog.system(system)
    if gpus <= found.gpus:
        return gpus
    node = found.gpus_per_node
    even = [n for n in range(node, found.gpus + 1, node) if gpus % n == 0]
    widest = max(even, default=1)
    powers = [n for n in even if n & (n - 1) == 0 and 2 * n >= widest]
    return max(powers, default=widest)
