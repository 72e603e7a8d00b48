"""No command reaches for the network, but to download a data set that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import DIGITS

# In a process of its own, because a hook stays. It hears of every use of a socket, by the libraries too.
GUARDED = """
import json, os, sys

def refuse(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.")):
        attempts.append(event)
        raise RuntimeError(event)

attempts = []
sys.addaudithook(refuse)
from vaecli.cli import main

codes = [main(command) for command in json.loads(sys.argv[1])]
assert codes == [0] * len(codes), codes
assert not attempts, attempts

import socket
try:
    socket.create_connection(("127.0.0.1", 9))
except RuntimeError:  # the guard is awake
    print("guarded")
"""


def test_the_six_commands_stay_on_this_machine(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    train = ["train", "-d", str(DIGITS), "-e", "1", "-o", run, "--precision", "fp32", "--device", "cpu"]
    commands = [
        train,
        [*train, "--resume", "--epochs", "2"],
        ["test", run],
        ["encode", run, "-o", str(tmp_path / "codes.csv")],
        ["sample", run],
        ["sample", run, "--from", "test", "-n", "9", "-o", str(tmp_path / "images.npz")],
        ["scatter", run],
        ["curves", run],
        ["test", run, "-d", "kmnist", "--data-dir", str(DIGITS)],
        ["encode", run, str(tmp_path / "run/samples.png"), "-o", str(tmp_path / "codes.jsonl")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, json.dumps(commands)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("guarded\n")
