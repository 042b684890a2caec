"""How many threads a process may usefully start.

All of a process's threads work on one slice at a time (one stream): a slice's latency is what a user waits
for, two streams of half the threads gave no more slices per second, and each stream takes working memory of
its own. By default there is one thread for each core that the process may use:

- CPUs are counted by the process's affinity (`taskset`, `docker --cpuset-cpus`, Slurm), not by the machine;
- two CPUs that are hardware threads of one core count once, for matrix products keep a core's units busy with
  one thread alone; both engines' own defaults do so, too;
- a container's CPU quota (`docker --cpus`, Kubernetes limits) cuts the number: with more threads than quota
  all of them are stopped for part of every scheduling period, and every operator waits for the last.

Threads are not bound to CPUs, and do not spin while they wait: where something else runs on the same CPUs,
another litemed-run among it, both cost more than they gain.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

_CGROUP_MOUNT = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


def available_threads() -> int:
    """Return how many cores this process may use: those of its affinity, cut to its CPU quota; at least 1.

    A quota of 2.5 CPUs gives 2: with a third thread all would be stopped for part of every period.
    """
    return max(1, int(min(cores_of(os.sched_getaffinity(0)), cpu_quota())))


def cores_of(cpus: Iterable[int], folder: Path = _CPUS) -> int:
    """Return to how many cores CPUs belong; one each where the system does not say."""
    cores = set()
    for cpu in cpus:
        try:
            cores.add((folder / f"cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(f"CPU {cpu}")
    return len(cores)


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
