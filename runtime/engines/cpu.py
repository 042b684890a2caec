"""What this machine's CPU can do, and how many threads a process may usefully start on it.

All of them work on one slice at a time: a slice's latency is what a user waits for, and two streams of half
the threads gave no more slices per second. By default there is one for each core that the process may use, by
its affinity and cut to its container's CPU quota, past which all of them would be stopped for part of every
period. Hardware threads of one core count once, for one keeps its units busy. All this is what Linux tells;
elsewhere each CPU counts as a core.
"""

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path


def available_threads() -> int:
    """Return how many cores this process may use: those of its affinity, cut to its CPU quota; at least 1."""
    return max(1, int(min(own_cores(), cpu_quota())))


def own_cores(cpus: Iterable[int] | None = None, folder: Path = Path("/sys/devices/system/cpu")) -> int:
    """Return to how many cores the process's CPUs belong; one each where the system does not say."""
    if cpus is None:
        cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = (_text(folder / f"cpu{cpu}/topology/thread_siblings_list") or f"CPU {cpu}" for cpu in cpus)
    return len(set(siblings))


def cpu_quota(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the CPU quota, in CPUs, of this process's cgroup or the strictest above it; infinite if none.

    In a container the paths in /proc may be the host's and lead nowhere; the mount is then its own cgroup.
    """
    groups = {mount}
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        group = mount / controllers / path.lstrip("/")
        groups |= {one for one in (group, *group.parents) if one.is_relative_to(mount)}
    return min(map(_quota_of, groups))


def _quota_of(group: Path) -> float:
    v1 = " ".join(_text(group / f"cpu.cfs_{what}_us") for what in ("quota", "period"))
    found = re.match(r"([1-9]\d*)\s+([1-9]\d*)\s*$", _text(group / "cpu.max") or v1)
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
