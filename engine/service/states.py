"""The states of a run, and which of them mean that a process should live."""

from __future__ import annotations

ACTIVE = ("starting", "training", "paused", "stopping")
"""A worker process belongs to the run."""

WORKING = ("starting", "training", "stopping")
"""The run keeps a device busy: it takes a slot."""

TERMINAL = ("done", "stopped", "diverged", "failed", "interrupted")

RESUMABLE = ("stopped", "interrupted", "failed", "diverged")
"""No process, but training can go on from the newest checkpoint."""
