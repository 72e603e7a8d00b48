"""How many threads torch takes: as many as there are cores, but no more than a container may use."""

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # Linux, control groups version 2: "200000 100000" are 2 cores


def stay_within_quota(quota: Path = _QUOTA) -> None:
    """Set OMP_NUM_THREADS to the cores that the container's quota amounts to, unless the user has set it.

    torch counts the cores it may run on, but not how much of them: with 64 threads on a quota of 2
    cores, each of a step's many barriers waits for threads that are not scheduled. It must be
    called before torch is imported.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    try:
        allowed, period = quota.read_text().split()
        cores = math.ceil(int(allowed) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or "max": no quota
        return
    if 0 < cores < len(os.sched_getaffinity(0)):
        os.environ["OMP_NUM_THREADS"] = str(cores)
