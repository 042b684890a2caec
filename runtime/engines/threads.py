"""How many threads a process may usefully start."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_MOUNT = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def available_threads() -> int:
    """Return how many CPUs this process may use: its affinity, cut to its cgroup's CPU quota; at least 1.

    A quota of 2.5 CPUs gives 2: with a third thread all would be stopped for part of every period.
    """
    return max(1, int(min(len(os.sched_getaffinity(0)), cpu_quota())))


def cpu_quota(mount: Path = _CGROUP_MOUNT, own: Path = _OWN_CGROUPS) -> float:
    """Return the CPU quota, in CPUs, of this process's cgroup or the strictest above it; infinite if none.

    Reads cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`). In a container the paths in /proc may be those of
    the host and lead nowhere; the mount itself is then the container's own cgroup, which is read in any case.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    quota = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            hierarchies = (mount, mount / "unified")
        elif "cpu" in controllers.split(","):
            hierarchies = (mount / controllers, mount / "cpu")
        else:
            continue
        for hierarchy in hierarchies:
            own_group = hierarchy / path.lstrip("/")
            for group in (own_group, *own_group.parents):
                if group.is_relative_to(mount):
                    quota = min(quota, _quota_of(group))
    return quota


def _quota_of(group: Path) -> float:
    """Return one cgroup's quota in CPUs; infinite where it has none."""
    try:
        limit, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    try:
        return int(limit) / int(period) if limit != "max" and int(limit) > 0 else math.inf
    except (ValueError, ZeroDivisionError):
        return math.inf
