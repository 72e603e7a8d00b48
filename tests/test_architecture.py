"""Imports point one way, and the heavy ones stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DIGITS

import vaecli

PACKAGE = Path(vaecli.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# Each layer may import from itself and from those below it.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"console.process", "console.progress"},
    {"console", "options"},
    {name for name in MODULES if name.startswith("services.")},
    {"services"},
    {"training", "measures", "reference"},
    {"fused"},
    {"by_hand"},
    {"arranged"},
    {"engine", "data", "checkpoint", "codes", "grids", "backgrounds", "plots.scatter", "plots.curves"},
    {"metadata"},
    {"sources", "images", "run", "runtime", "plots", "latent", "schedule"},
    {"wheel", "folders", "idx", "catalog", "metrics"},
    {"loss", "mixed"},
    {"model"},
    {"lock"},
    {"files", "text", "allocator", "adam", "aside", "layers", "phases", "threads"},
    {"errors"},
)
ONLY_IN = {
    "typer": {"cli", "options", "console.process"},
    "rich": {"console.progress"},
    "matplotlib": {"plots", "plots.scatter", "plots.curves"},
    "safetensors": {"checkpoint", "codes"},
    "torchvision": {"data", "sources"},
    "filelock": {"lock"},
    "PIL": {"images", "grids"},
    "subprocess": {"sources"},
    "cuda": {"fused"},
    "socket": {"sources"},
    "urllib": {"sources"},
}
NEVER = {"eval", "exec", "torch.load", "pickle.load", "pickle.loads", "np.load"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    names = {name.removeprefix("vaecli.") for name in imports(path) if name.startswith("vaecli.")}
    return names & MODULES.keys()


def layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


def test_every_module_has_a_layer() -> None:
    assert set().union(*LAYERS) == MODULES.keys() - {"__init__", "vaecli"} - {""}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"__init__", ""}))
def test_imports_point_down(name: str) -> None:
    for other in ours(MODULES[name]):
        assert layer(other) >= layer(name), f"{name} imports {other}"


@pytest.mark.parametrize("name", ["errors", "options", "files", "text"])
def test_the_ground_stands_on_errors_alone(name: str) -> None:
    assert ours(MODULES[name]) <= {"errors"}


def test_the_allocator_is_set_by_the_command_alone() -> None:
    """It is the whole process's, so a notebook's is left as it is."""
    assert {name for name, path in MODULES.items() if "allocator" in ours(path)} == {"cli"}


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_in_their_modules(library: str) -> None:
    users = {name for name, path in MODULES.items() if library in {n.partition(".")[0] for n in imports(path)}}
    assert users <= ONLY_IN[library]


def test_nothing_of_ours_would_run_a_strangers_code() -> None:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in NEVER, name


HEAVY = ("torch", "torchvision", "matplotlib", "numpy", "rich", "PIL")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("from vaecli.cli import main; main(['--help'])", HEAVY),
        ("from vaecli.cli import main; main(['train', '--help'])", HEAVY),
        ("import vaecli", HEAVY),
        ("import vaecli.services.curves", ("torch", "torchvision")),
        ("from vaecli.services import encode, evaluate, sample", ("torchvision", "matplotlib", "rich")),
        (
            f"from vaecli.cli import main; assert not main(['train', '--dry-run', '-d', {str(DIGITS)!r}])",
            ("torchvision", "matplotlib", "torch._dynamo", "sympy"),
        ),
        (
            "import torch; from vaecli.runtime import be_exact; be_exact(torch.device('cuda'));"
            "assert torch.are_deterministic_algorithms_enabled()",
            ("torch._inductor", "torch._dynamo"),
        ),
    ],
    ids=lambda case: case[-40:] if isinstance(case, str) else "",
)
def test_what_is_slow_is_imported_only_where_it_is_needed(code: str, absent: tuple[str, ...], tmp_path: Path) -> None:
    check = f"{code}\nimport sys\nfound = [name for name in {absent} if name in sys.modules]\nassert not found, found"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL, cwd=tmp_path, timeout=60)
