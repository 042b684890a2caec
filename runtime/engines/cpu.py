"""What this machine's CPU is and can do, and how many threads a process may usefully start on it.

All of a process's threads work on one slice at a time (one stream): a slice's latency is what a user waits
for, two streams of half the threads gave no more slices per second, and each stream takes working memory of
its own. By default there is one thread for each core that the process may use:

- CPUs are counted by the process's affinity (`taskset`, `docker --cpuset-cpus`, Slurm), not by the machine;
- two CPUs that are hardware threads of one core count once, for matrix products keep a core's units busy with
  one thread alone; both engines' own defaults do so, too;
- a container's CPU quota (`docker --cpus`, Kubernetes limits) cuts the number: with more threads than quota
  all of them are stopped for part of every scheduling period, and every operator waits for the last.

All of this is what Linux tells; elsewhere each CPU of the machine counts as a core. Threads are not bound to
CPUs, and do not spin while they wait: where something else runs on the same CPUs, another litemed-run among
it, both cost more than they gain.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable
from pathlib import Path

_CGROUP_MOUNT = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


def available_threads() -> int:
    """Return how many cores this process may use: those of its affinity, cut to its CPU quota; at least 1.

    A quota of 2.5 CPUs gives 2: with a third thread all would be stopped for part of every period.
    """
    return max(1, int(min(cores_of(own_cpus()), cpu_quota())))


def own_cpus() -> set[int]:
    """Return the numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


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
    groups: set[Path] = set()
    for line in _lines(own):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for hierarchy in (controllers, "cpu") if controllers else ("", "unified"):
            group = mount / hierarchy / path.lstrip("/")
            groups |= {one for one in (group, *group.parents) if one.is_relative_to(mount)}
    return min(map(_quota_of, groups), default=math.inf)


def _quota_of(group: Path) -> float:
    """Return one cgroup's quota in CPUs; infinite where it has none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            limit, period = " ".join((group / name).read_text() for name in names).split()
            return int(limit) / int(period) if int(limit) > 0 else math.inf
        except OSError:
            continue
        except (ValueError, ZeroDivisionError):  # "max", say
            break
    return math.inf


def cpu_identity() -> str:
    """Return a text that differs between CPUs for which compiled graphs, or what is fastest, may differ."""
    fields = _fields()
    names = ("model name", "flags", "Features", "CPU part")
    known = [platform.machine(), os.environ.get("PROCESSOR_IDENTIFIER"), *map(fields.get, names)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def cpu_instructions() -> set[str]:
    """Return the names of the instruction sets that the CPU has, such as "avx2"; none if Linux tells none."""
    fields = _fields()
    return {name for key in ("flags", "Features") for name in fields.get(key, "").split()}


def _fields() -> dict[str, str]:
    """Return what /proc says of the CPUs, of each kind of line the first; empty where it says nothing."""
    lines = [line.partition(":") for line in _lines(Path("/proc/cpuinfo"))]
    return {key.strip(): value for key, _, value in reversed(lines)}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
