"""Whatever ends a training, its files are whole and the resumed run ends with the same bytes."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_one_line, process, small_file_system
from faults import SIGNALS, Command, Conditions, start, wait_for
from test_idx import idx_bytes

from vaecli import checkpoint, data, engine
from vaecli.files import LEFTOVER
from vaecli.lock import LOCK
from vaecli.metrics import read_metrics
from vaecli.run import read_config

EPOCHS = 3
FAULTS = int(os.environ.get("SOAK_FAULTS", "8"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
NAMES = re.compile(r"config\.json|metrics\.jsonl|state\.safetensors|check[1-9][0-9]*\.safetensors")


@dataclass(frozen=True)
class Reference:
    """A training that nothing disturbed."""

    args: list[str]
    folder: Path
    points: int

    def check(self, epoch: int) -> bytes:
        return (self.folder / f"check{epoch}.safetensors").read_bytes()


def write_digits(folder: Path, digits: data.Split) -> None:
    """A data set of 40 and 20 digits, in IDX files."""
    folder.mkdir()
    assert digits.labels is not None
    for part, rows in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(digits.images[rows].numpy()))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(digits.labels[rows].numpy().astype(np.uint8)))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, digits: data.Split) -> Reference:
    """A run over 40 digits, with every checkpoint kept."""
    base = tmp_path_factory.mktemp("reference")
    write_digits(base / "digits", digits)
    common = ["--precision", "fp32", "--device", "cpu", "-q"]
    args = ["train", "-d", str(base / "digits"), "-b", "20", "-e", str(EPOCHS), *common]
    command = start(
        base / "log", *args, "--checkpoint-every", 1, "-o", base / "run", given=Conditions(count_to=base / "points")
    )
    assert command.end() == (0, f"{base}/run/check{EPOCHS}.safetensors\n", "")
    return Reference(args, base / "run", int((base / "points").read_text()))


def assert_whole(folder: Path, reference: Reference) -> None:
    """Every file is one of a run, loads, and is what the undisturbed run had at that epoch."""
    for path in folder.iterdir() if folder.exists() else []:
        if path.name == LOCK or ((match := LEFTOVER.fullmatch(path.name)) and NAMES.fullmatch(match[1])):
            continue
        assert NAMES.fullmatch(path.name), path.name
        if path.name == "config.json":
            assert read_config(str(folder)).epochs == EPOCHS
        elif path.name == "metrics.jsonl":
            records = read_metrics(str(path))
            expected = read_metrics(str(reference.folder / path.name))[: len(records)]
            assert [r.without_speed() for r in records] == [r.without_speed() for r in expected]
        elif path.name == "state.safetensors":
            model = engine.new_model(2, 0)
            epoch = checkpoint.load_state(str(path), model, torch.optim.Adam(model.parameters())).epoch
            check = reference.folder / f"check{epoch}.safetensors"
            weights = checkpoint.load(str(check), torch.device("cpu"))[0].state_dict()
            assert all(value.equal(weights[name]) for name, value in model.state_dict().items())
        else:
            checkpoint.load(str(path), torch.device("cpu"))
            assert path.read_bytes() == (reference.folder / path.name).read_bytes()


def assert_resumes(folder: Path, reference: Reference, *more: object) -> None:
    """`--resume` ends with the undisturbed run's bytes, and leaves nothing else."""
    before = set(os.listdir(folder)) if folder.exists() else set()
    code, out, err = start(folder.parent / "log", *reference.args, "-o", folder, "--resume", *more).end()
    assert (code, out, err) == (0, f"{folder}/check{EPOCHS}.safetensors\n", "")
    assert_whole(folder, reference)
    for name in (f"check{EPOCHS}.safetensors", "state.safetensors"):
        assert (folder / name).read_bytes() == (reference.folder / name).read_bytes()
    left = {name for name in os.listdir(folder) if not NAMES.fullmatch(name)}
    assert not left, f"{left} of {before}"


def listing(folder: Path) -> set[tuple[str, int]]:
    """What a look into the folder shows: it changes with every file that is made, replaced or removed."""
    try:
        with os.scandir(folder) as entries:
            return {(entry.name, entry.stat().st_ino) for entry in entries}
    except FileNotFoundError:
        return set()


def kill(command: Command, folder: Path, chance: random.Random) -> None:
    """SIGKILL at a random time, or soon after a random change in the folder."""
    if chance.random() < 0.5:
        command.process.join(chance.uniform(0, 1))
    else:
        for _ in range(chance.randint(1, 6 * EPOCHS)):
            before = listing(folder)
            while command.running() and listing(folder) == before:
                time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.003))
    command.send(signal.SIGKILL)


@pytest.mark.soak
def test_killed_at_any_moment_nothing_is_lost(tmp_path: Path, reference: Reference) -> None:
    """SIGKILL: at start-up, within an epoch, in the middle of a file and between two; also in a resumed run."""
    chance, kills, inside, leftovers = random.Random(SEED), 0, 0, 0
    while kills < FAULTS:
        folder = tmp_path / f"run{kills}"
        every = ["--checkpoint-every", chance.choice([1, 3])]
        for _ in range(chance.choice([1, 1, 2])):
            at_a_point = chance.random() < 0.5
            given = Conditions({chance.randint(0, reference.points): signal.SIGKILL} if at_a_point else {})
            command = start(tmp_path / "log", *reference.args, *every, "-o", folder, "--resume", given=given)
            if not at_a_point:
                kill(command, folder, chance)
            code, _, err = command.end()
            assert (code, err) in ((-signal.SIGKILL, ""), (0, ""))
            kills += code != 0
            inside += at_a_point and code != 0
            leftovers += any(map(LEFTOVER.fullmatch, os.listdir(folder) if folder.exists() else []))
            assert_whole(folder, reference)
        assert_resumes(folder, reference)
        shutil.rmtree(folder)
    print(f"{kills} SIGKILLs, {inside} of them at steps of writing; {leftovers} left a part of a file behind.")


@pytest.mark.soak
def test_stopped_at_any_moment_the_last_epoch_is_kept(tmp_path: Path, reference: Reference) -> None:
    """SIGINT, SIGTERM, SIGHUP at any step of writing; now and then a second Ctrl-C into the cleaning up."""
    chance, stops = random.Random(SEED), 0
    while stops < FAULTS:
        folder, signum = tmp_path / f"run{stops}", chance.choice(SIGNALS)
        strikes = {chance.randint(0, reference.points): int(signum)}
        twice = signum == signal.SIGINT and chance.random() < 0.5
        if twice:
            strikes[max(strikes) + chance.randint(1, 12)] = signum
        args = [*reference.args, "--checkpoint-every", 3, "-o", folder]
        code, _, err = start(tmp_path / "log", *args, given=Conditions(strikes)).end()
        assert (code, err) in ((-signum, ""), (0, ""))  # the last points are those of checkpoints it need not write
        stops += code != 0
        assert_whole(folder, reference)
        state = folder / "state.safetensors"
        if state.exists() and not twice:
            epoch = checkpoint.read_state_metadata(str(state)).epoch
            assert (folder / f"check{epoch}.safetensors").exists()
        assert_resumes(folder, reference)
        shutil.rmtree(folder)
    print(f"{stops} signals at steps of writing.")


# Two writers


def test_one_of_several_trainings_on_a_folder_trains(tmp_path: Path, reference: Reference) -> None:
    """Started at the same time: one gets the folder, the others one line with its process."""
    folder = tmp_path / "new/run"
    args = [*reference.args, "-e", "20000", "-o", folder]
    commands = [start(tmp_path / f"log{number}", *args) for number in range(4)]
    wait_for(lambda: sum(command.running() for command in commands) == 1, "winner")
    (winner,) = (command for command in commands if command.running())
    for command in commands:
        if command is not winner:
            code, out, err = command.end()
            assert (code, out) == (1, "")
            assert f"{folder} is in use by process {winner.pid} on {os.uname().nodename}." in assert_one_line(err)
    wait_for((folder / "state.safetensors").exists, "epoch")
    code, out, err = start(tmp_path / "late", *args, "--resume").end()
    assert (code, out) == (1, "")
    assert f"process {winner.pid} " in assert_one_line(err)
    assert start(tmp_path / "dry", *args, "--resume", "--dry-run").end()[0] == 0  # it writes nothing
    assert winner.running()
    winner.send(signal.SIGKILL)  # and the kernel lets the lock go
    winner.end()
    assert (folder / LOCK).exists()
    epochs = len(read_metrics(str(folder / "metrics.jsonl")))
    last = start(tmp_path / "next", *args, "--resume", "-e", epochs + 1).end()
    assert last == (0, f"{folder}/check{epochs + 1}.safetensors\n", "")
    assert not (folder / LOCK).exists()


def test_a_run_that_trains_can_be_read_and_drawn(tmp_path: Path, reference: Reference) -> None:
    folder = tmp_path / "run"
    command = start(tmp_path / "log", *reference.args, "-e", 20000, "--checkpoint-every", 1, "-o", folder)
    wait_for((folder / "check1.safetensors").exists, "checkpoint")
    for name in ("test", "scatter", "encode"):
        code, out, err = start(tmp_path / name, name, folder, "-q").end()
        assert (code, err) == (0, "")
        assert out
    assert (folder / "scatter.png").exists()
    command.send(signal.SIGTERM)
    assert command.end()[0] == -signal.SIGTERM


# Disks and folders


def fails(output: Path, args: list[object], words: str, given: Conditions) -> None:
    code, out, err = start(output, *args, given=given).end()
    assert (code, out) == (1, "")
    assert words in assert_one_line(err)


@pytest.mark.soak
def test_a_limit_on_file_sizes_loses_nothing(tmp_path: Path, reference: Reference) -> None:
    """Too large is the state (1.2 MB), a checkpoint (0.4 MB) or the metrics of the second epoch (500 bytes)."""
    chance = random.Random(SEED)
    limits = [1_000_000, 100_000, *(int(10 ** chance.uniform(2.5, 6)) for _ in range(FAULTS // 8 - 1))]
    for number, limit in enumerate(limits):
        folder = tmp_path / f"run{number}"
        args = [*reference.args, "--checkpoint-every", 1, "-o", folder]
        fails(tmp_path / "log", args, "File too large", Conditions(file_bytes=limit))
        assert_whole(folder, reference)
        assert_resumes(folder, reference)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for an epoch but not for a run."""
    with small_file_system(tmp_path / "disk", "2800k") as folder:
        yield folder


def test_a_disk_that_fills_up_loses_nothing(small_disk: Path, tmp_path: Path, reference: Reference) -> None:
    folder = small_disk / "run"
    args: list[object] = [*reference.args, "--checkpoint-every", 1, "-o", folder]
    fails(tmp_path / "log", args, "No space left on device", Conditions())
    assert (folder / "check1.safetensors").read_bytes() == reference.check(1)
    assert checkpoint.read_state_metadata(str(folder / "state.safetensors")).epoch == 1
    assert not (folder / LOCK).exists()
    assert_whole(folder, reference)
    fails(tmp_path / "log", [*args, "--resume"], "No space left on device", Conditions())  # nothing was freed
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    command = start(tmp_path / "log", *args, "--resume")
    assert command.end()[0] == 0
    assert (folder / f"check{EPOCHS}.safetensors").read_bytes() == reference.check(EPOCHS)


def test_a_folder_that_cannot_be_written(tmp_path: Path, reference: Reference) -> None:
    """Before a training, and from its first epoch on. What is in it can still be used."""
    powerless = Conditions(powerless=True)
    folder, log = tmp_path / "run", tmp_path / "log"
    args: list[object] = [*reference.args, "-o", folder]
    (tmp_path / "closed").mkdir(mode=0o555)
    fails(log, [*args, "-o", tmp_path / "closed/run"], "closed/run: Permission denied", powerless)
    fails(log, [*args, "-o", tmp_path / "closed"], "closed/config.json: Permission denied", powerless)
    lock = tmp_path / "shared/.lock"  # as another user's training leaves it that was killed
    lock.parent.mkdir()
    lock.touch(mode=0o444)
    fails(log, [*args, "-o", lock.parent], "shared/.lock: Permission denied", powerless)

    command = start(log, *args, "-e", 20000, given=powerless)
    wait_for((folder / "state.safetensors").exists, "epoch")
    folder.chmod(0o555)
    code, out, err = command.end()
    assert (code, out) == (1, "")
    assert "Permission denied" in assert_one_line(err)
    epoch = checkpoint.read_state_metadata(str(folder / "state.safetensors")).epoch
    folder.chmod(0o755)
    answer = f"{folder}/check{epoch + 1}.safetensors\n"
    assert start(log, *args, "--resume", "-e", epoch + 1, given=powerless).end() == (0, answer, "")
    folder.chmod(0o555)
    # Finished: only read.
    assert start(log, *args, "--resume", "-e", epoch + 1, given=powerless).end() == (0, answer, "")
    assert start(log, "test", folder, "-q", given=powerless).end()[0] == 0
    folder.chmod(0o755)


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_a_run_folder_that_goes_away(tmp_path: Path, reference: Reference, replaced: bool) -> None:
    """One line; and what came in its place is not written to."""
    folder = tmp_path / "run"
    command = start(tmp_path / "log", *reference.args, "-e", 20000, "-o", folder)
    wait_for((folder / "state.safetensors").exists, "epoch")
    folder.rename(tmp_path / "gone")
    if replaced:
        folder.mkdir()
    shutil.rmtree(tmp_path / "gone")
    code, out, err = command.end()
    assert (code, out) == (1, "")
    assert_one_line(err)
    assert os.path.exists(folder) == replaced
    assert not replaced or os.listdir(folder) == []


# Divergence


def test_divergence_keeps_what_was_good(tmp_path: Path, reference: Reference) -> None:
    folder = tmp_path / "run"
    code, out, err = start(tmp_path / "log", *reference.args, "--lr", "1e9", "-o", folder).end()
    assert (code, out) == (3, "")
    assert re.search(r"not finite at epoch 1, step [12]\.", assert_one_line(err))
    assert os.listdir(folder) == ["config.json"]
    again = start(tmp_path / "log", *reference.args, "--lr", "1e9", "-o", folder, "--resume").end()
    assert again == (code, out, err)  # the same settings do the same
    assert start(tmp_path / "log", *reference.args, "-o", folder, "--overwrite").end()[0] == 0
    assert_whole(folder, reference)


def test_divergence_after_some_epochs_keeps_the_last_good_one(tmp_path: Path, reference: Reference) -> None:
    """One step an epoch, whose gradient's square is beyond float32 in the third, though the loss is not."""
    folder = tmp_path / "run"
    args = [*reference.args, "-b", "40", "--lr", "0.19", "-e", "9", "-o", folder]
    code, out, err = start(tmp_path / "log", *args).end()
    assert (code, out) == (3, "")
    match = re.search(r"moments are not finite after epoch (\d)\.", assert_one_line(err))
    assert match
    last = int(match[1]) - 1
    checkpoint.load(str(folder / f"check{last}.safetensors"), torch.device("cpu"))
    assert checkpoint.read_state_metadata(str(folder / "state.safetensors")).epoch == last
    assert start(tmp_path / "log", *args, "--resume").end() == (code, out, err)


# Real starts


def real(*args: object) -> "subprocess.Popen[bytes]":
    """The command from the start of Python on, in a process group of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vaecli", *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def test_a_real_start_killed_and_resumed(tmp_path: Path, reference: Reference) -> None:
    folder = tmp_path / "run"
    child = real(*reference.args, "-o", folder)
    wait_for(lambda: (folder / "metrics.jsonl").exists(), "epoch")
    child.kill()
    child.communicate()
    assert_whole(folder, reference)
    done = process(*reference.args, "-o", folder, "--resume")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (folder / f"check{EPOCHS}.safetensors").read_bytes() == reference.check(EPOCHS)


def test_ctrl_c_while_the_command_starts_prints_nothing() -> None:
    """From the package's first import on. Before it, in Python's own start, a traceback is Python's."""
    code = "import os, signal, sys; sys.argv[0] = 'vae'; import vaecli; os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_ctrl_c_is_left_to_a_package_that_uses_this_one(tmp_path: Path) -> None:
    tidy = "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    print('tidied up')"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/__init__.py").write_text("import vaecli")
    (tmp_path / "other/__main__.py").write_text(f"import os, signal\n{tidy}")
    done = subprocess.run([sys.executable, "-m", "other"], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"tidied up\n", b"")


LOOP = """
for z in 1 2 3; do
    "$PYTHON" -m vaecli train -d "$DIGITS" -b 20 -e 20000 --device cpu -z $z -o run$z
done
touch finished
"""


def test_one_ctrl_c_stops_a_loop_over_runs(tmp_path: Path, reference: Reference) -> None:
    """At a terminal, where the shell and the command both get the signal, and the shell looks how the command ended."""
    ours, theirs = os.openpty()
    begin = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp('bash', sys.argv[1:])"
    env = os.environ | {"PYTHON": sys.executable, "DIGITS": reference.args[2], "OMP_NUM_THREADS": "1"}
    shell = subprocess.Popen(
        [sys.executable, "-c", begin, "bash", "-c", LOOP],
        stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    wait_for((tmp_path / "run1/state.safetensors").exists, "epoch")
    os.write(ours, b"\x03")
    text = b""
    try:
        while part := os.read(ours, 10_000):
            text += part
    except OSError:  # Linux's way to say that nobody holds the other end
        pass
    assert shell.wait(60) == -signal.SIGINT
    os.close(ours)
    assert os.listdir(tmp_path) == ["run1"]
    assert b"Go on with: vae train --resume -o run1" in text
    assert text.rindex(b"\x1b[?25h") > text.rindex(b"\x1b[?25l")  # the cursor is shown again
    assert not (tmp_path / "run1" / LOCK).exists()
