"""The allocator keeps what is freed, in the command alone."""

import subprocess
import sys

import pytest

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


def test_only_the_command_asks_for_it() -> None:
    code = "import vaecli, ctypes, sys; assert 'vaecli.allocator' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
