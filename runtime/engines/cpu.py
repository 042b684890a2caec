"""What this machine's CPU can do, and how many threads a process may usefully start on it.

All of a process's threads work on one slice at a time: a slice's latency is what a user waits for, and two
streams of half the threads gave no more slices per second. By default there is one thread for each core that
the process may use:

- CPUs are counted by the process's affinity (`taskset`, `docker --cpuset-cpus`, Slurm), not by the machine;
- two CPUs that are hardware threads of one core count once, for one thread keeps a core's units busy;
- a container's CPU quota (`docker --cpus`, Kubernetes limits) cuts the number: with more threads than quota
  all of them are stopped for part of every scheduling period, and every operator waits for the last.

All of this is what Linux tells; elsewhere each CPU counts as a core. Threads are not bound to CPUs and do not
spin while they wait: where something else runs on the same CPUs, both cost more than they gain.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

_SYS, _OWN_CGROUPS = Path("/sys"), Path("/proc/self/cgroup")


def available_threads() -> int:
    """Return how many cores this process may use: those of its affinity, cut to its CPU quota; at least 1."""
    return max(1, int(min(own_cores(), cpu_quota())))


def own_cores(cpus: Iterable[int] | None = None, folder: Path = _SYS / "devices/system/cpu") -> int:
    """Return to how many cores the process's CPUs belong; one each where the system does not say."""
    if cpus is None:
        cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = (_text(folder / f"cpu{cpu}/topology/thread_siblings_list") or f"CPU {cpu}" for cpu in cpus)
    return len(set(siblings))


def cpu_quota(mount: Path = _SYS / "fs/cgroup", own: Path = _OWN_CGROUPS) -> float:
    """Return the CPU quota, in CPUs, of this process's cgroup or the strictest above it; infinite if none.

    Reads cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`). In a container the paths in /proc may be those of
    the host and lead nowhere; the mount itself is then the container's own cgroup, which is read in any case.
    """
    groups = {mount}
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        group = mount / controllers / path.lstrip("/")
        groups |= {one for one in (group, *group.parents) if one.is_relative_to(mount)}
    return min(map(_quota_of, groups))


def _quota_of(group: Path) -> float:
    """Return one cgroup's quota in CPUs; infinite where it has none."""
    text = _text(group / "cpu.max") or " ".join(
        _text(group / f"cpu.cfs_{what}_us") for what in ("quota", "period")
    )
    found = re.match(r"([1-9]\d*)\s+([1-9]\d*)\s*$", text)
    return int(found[1]) / int(found[2]) if found else math.inf


def cpu_instructions() -> set[str]:
    """Return the names of the instruction sets that the CPU has, such as "avx2"; none if Linux tells none."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return set(found[1].split()) if found else set()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
