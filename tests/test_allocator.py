"""The allocator keeps what is freed."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vaecli import allocator

PAGE_FAULTS = """
import resource, sys
{setting}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytearray(64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(setting: str) -> int:
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS.format(setting=setting)], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_kept() -> None:
    """Twenty times 64 MiB, one after the other: mapped anew each time, or once."""
    assert faults("from vaecli.allocator import keep_freed_memory; keep_freed_memory()") < 100
    assert faults("import vaecli.allocator") > 10_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
@pytest.mark.parametrize(
    ("most", "kept"),
    [(2**31, {"mmap": 2**30, "trim": 2**31 - 1}), (2**25, {"mmap": 2**25, "trim": 2**31 - 1}), (0, {})],
)
def test_an_old_glibc_is_asked_for_less(monkeypatch: pytest.MonkeyPatch, most: int, kept: dict[str, int]) -> None:
    """glibc 2.31 takes 32 MiB at most; without the one threshold the other would be worse than neither."""
    found = {}

    def mallopt(parameter: int, value: int) -> int:
        name = {-1: "trim", -3: "mmap"}[parameter]
        if name == "mmap" and value > most:
            return 0
        found[name] = value
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    allocator.keep_freed_memory()
    assert found == kept
