"""Memory of this process, in MiB. Linux only."""

from __future__ import annotations

from pathlib import Path


def memory_mib(field: str) -> float:
    """A field of /proc/self/status. ``getrusage`` does not work here: a new process starts with its parent's peak.

    Args:
        field: ``VmRSS`` for what is resident now, ``VmHWM`` for the peak so far.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))
