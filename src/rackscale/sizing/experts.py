"""Which experts a model has, if any."""

from __future__ import annotations

from rackscale.models.description import Experts, Model


def experts_of(model: Model) -> Experts | None:
    """Of the first layer that has experts; None: a dense model."""
    return next((kind.feed for kind in model.layers if isinstance(kind.feed, Experts)), None)
