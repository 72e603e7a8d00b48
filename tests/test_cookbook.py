"""The README's cookbook, recipe after recipe, as a reader would paste it into bash."""

import csv
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS
from PIL import Image
from test_readme import README
from warm import command_on_path

RECIPES = re.findall(r"\*\*(.+?)\*\*.*?```bash\n(.*?)```", README, re.DOTALL)
# The recipes train on MNIST for some epochs; here it is the fixture's digits, once.
TINY = {"train": ["-d", str(DIGITS), "-e", "1", "-b", "100", "--device", "cpu"]}


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory, learned: str, scans: list[str]) -> Path:
    """A folder with all that the recipes take: a run in outputs/demo, and scans."""
    folder = tmp_path_factory.mktemp("kitchen")
    shutil.copytree(Path(learned).parent, folder / "outputs/demo")
    shutil.copytree(Path(scans[0]).parent, folder / "scans")
    return folder


@pytest.fixture(scope="module")
def answers(kitchen: Path) -> dict[str, str]:
    """What each recipe prints, by its title. They run in order: some take what earlier ones made."""
    found = {}
    with command_on_path(TINY) as path:
        env = os.environ | {"PATH": path, "LC_ALL": "C"}
        for title, script in RECIPES:
            command = ["bash", "-euo", "pipefail", "-c", script]
            done = subprocess.run(
                command, cwd=kitchen, env=env, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, f"{title}: {done.stderr}"
            assert "Error" not in done.stderr, f"{title}: {done.stderr}"
            found[title] = done.stdout
    return found


def test_there_are_at_least_eight_and_all_run(answers: dict[str, str]) -> None:
    assert len(RECIPES) == README.count("```bash") == len(answers) >= 8


def test_their_pictures_are_what_they_say(kitchen: Path, answers: dict[str, str]) -> None:
    # How many images a picture's sides hold: at 8 times 28 pixels and a separator of 8, so 232 a side.
    for name, sides in {"average-3-to-8": (3, 3), "contact-sheet": (4, 3), "draws": (4, 4), "strange": (5, 5)}.items():
        with Image.open(kitchen / f"{name}.png") as picture:
            assert picture.size == tuple(232 * side + 8 for side in sides), name
    for name, frames in {"3-to-8": 78, "circle": 60}.items():
        with Image.open(kitchen / f"{name}.gif") as animation:
            assert animation.n_frames == frames  # type: ignore[attr-defined]
    with Image.open(kitchen / "sweep.png") as picture:
        assert picture.width > 400


def test_the_nearest_neighbours_are_the_nearest(kitchen: Path, answers: dict[str, str]) -> None:
    tables = []
    for name in ("query.csv", "test.csv"):
        with open(kitchen / name) as file:
            tables.append([[row[f"mean_{dim}"] for dim in range(4)] for row in csv.DictReader(file)])
    query, codes = (np.array(table, float) for table in tables)
    distances = np.sqrt(((codes - query) ** 2).sum(1))
    found = np.loadtxt(answers["The five test images that are nearest to a scan"].splitlines())
    np.testing.assert_array_equal(found[:, 1], distances.argsort()[:5])
    np.testing.assert_allclose(found[:, 0], np.sort(distances)[:5], rtol=1e-4)


def test_the_other_tables(kitchen: Path, answers: dict[str, str]) -> None:
    classes = [line.split() for line in answers["A training set's classes in figures"].splitlines()]
    assert [row[0] for row in classes] == [str(digit) for digit in range(10)]
    assert sum(int(row[1]) for row in classes) == 500
    runs = [line.split() for line in answers["Runs compared"].splitlines()]
    assert sorted(run for _, _, run in runs) == ["sweep/z2", "sweep/z4", "sweep/z8"]
    losses = [float(loss) for loss, _, _ in runs]
    assert losses == sorted(losses)
