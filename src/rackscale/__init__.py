"""Plan, rehearse and run training and serving on rack-scale GPU capacity, with one scheduler for twin and reality."""

from __future__ import annotations

__version__ = "0.1.0"
