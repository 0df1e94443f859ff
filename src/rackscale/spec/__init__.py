"""The documents of a site: YAML in files and folders -> typed, immutable values, or every mistake with its line.

load(paths)         Documents: fleet, queues, policy, bookings, maintenance and work; raises DocumentError
check(paths)        the same as a report: counts and problems
json_schema()       for editors
submissions(...)    work as it arrives in a rehearsal, sampled from a seed
"""

from __future__ import annotations

from rackscale.spec.documents import Documents, Report, Window, check, load
from rackscale.spec.rehearsal import Arrivals, Duration, Failures, Submission, Work, submissions
from rackscale.spec.schema import json_schema

__all__ = [
    "Arrivals",
    "Documents",
    "Duration",
    "Failures",
    "Report",
    "Submission",
    "Window",
    "Work",
    "check",
    "json_schema",
    "load",
    "submissions",
]
