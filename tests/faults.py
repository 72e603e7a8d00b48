"""Commands to attack: the real `main`, forked from a process that has imported torch and run nothing.

A fork starts in milliseconds, so hundreds of trainings can be killed in a minute. Signals come from
outside, or from the command itself at its n-th fault point: before, in the middle of and after each
step that puts a file on disk.
"""

import ctypes
import io
import itertools
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
PRELOAD = ("pytest", "vaecli.cli", "vaecli.services.train")
# What a command imports only once it parses, locks or writes.
LATE = ("pydantic.types", "pydantic.type_adapter", "filelock", "safetensors.torch")
FORKS.set_forkserver_preload([*PRELOAD, *LATE])


@dataclass(frozen=True)
class Conditions:
    """What a command meets: signals at its fault points, a limit on the size of files, permissions that count."""

    strikes: Mapping[int, int] = field(default_factory=dict)
    file_bytes: int | None = None
    powerless: bool = False  # obeys the permissions of files also as root
    count_to: Path | None = None  # a file for the number of fault points passed


def drop_capabilities() -> None:
    """Make this process obey the permissions of files, also as root: capset(2).

    As another user it could not import what lies in a private folder.
    """
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


@dataclass
class Command:
    """A running command; its output goes to files, as a pipe that nobody reads would fill up."""

    process: ForkServerProcess
    output: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def running(self) -> bool:
        return self.process.is_alive()

    def send(self, signum: int) -> None:
        """Send a signal to a command that may have ended by itself."""
        if self.running():
            os.kill(self.pid, signum)

    def end(self) -> tuple[int, str, str]:
        """Exit code (minus the signal that killed it), stdout and stderr."""
        self.process.join(120)
        assert self.process.exitcode is not None, "still running after two minutes"
        out, err = (self.output.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        return self.process.exitcode, out, err


def start(output: Path, *args: object, given: Conditions = Conditions()) -> Command:
    """`vae ARGS` under these conditions, in this working directory."""
    process = FORKS.Process(target=_run, args=(output, [str(arg) for arg in args], os.getcwd(), given), daemon=True)
    process.start()
    return Command(process, output)


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Return once the condition holds; two minutes are long enough for anything here."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after two minutes"
        time.sleep(0.001)


def _run(output: Path, args: list[str], folder: str, given: Conditions) -> None:
    import torch

    from vaecli.cli import main

    torch.set_num_threads(1)  # as the commands that start on their own: other sums would be other bytes
    os.chdir(folder)
    for number, suffix in ((1, ".out"), (2, ".err")):
        descriptor = os.open(output.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    if given.powerless and os.geteuid() == 0:
        drop_capabilities()
    if given.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (given.file_bytes, resource.RLIM_INFINITY))
    passed = _strike(given.strikes) if given.strikes or given.count_to else None
    code = main(args)
    if given.count_to and passed:
        given.count_to.write_text(str(passed()))
    sys.exit(code)


def _strike(strikes: Mapping[int, int]) -> Callable[[], int]:
    """Make this process send itself signals at its fault points. The answer tells how many it has passed."""
    from vaecli import files

    points = itertools.count()
    latest = [0]

    def point() -> None:
        latest[0] = next(points)
        if signum := strikes.get(latest[0]):
            os.kill(os.getpid(), signum)

    def around(name: str) -> None:
        real = getattr(os, name)

        def struck(*args: Any, **options: Any) -> Any:
            point()
            result = real(*args, **options)
            point()
            return result

        setattr(os, name, struck)

    class Halves(io.BufferedWriter):
        def write(self, data: Any) -> int:
            half = super().write(data[: len(data) // 2])
            self.flush()
            point()
            return half + super().write(data[half:])

    for name in ("open", "fsync", "replace", "unlink", "ftruncate", "mkdir"):
        around(name)

    def halves(file: Any, mode: str, **options: Any) -> Any:
        return Halves(io.FileIO(file, "x")) if mode == "xb" else open(file, mode, **options)

    files.open = halves  # type: ignore[attr-defined]
    return lambda: latest[0]


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
