"""What the README shows is what the commands take."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from vaecli.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The arguments of every `vae ...` at the beginning of a line, without what it is piped into."""
    found = (re.match(r"\s*(?:ckpt=\$\()?vae (\w.*?)\)?(?: \|.*)?$", line) for line in text.splitlines())
    return [shlex.split(match[1]) for match in found if match]


def shown_commands() -> list[list[str]]:
    """Those in the README's shell blocks and in the commands' own help."""
    return commands("\n".join([*BLOCKS, (ROOT / "vaecli/cli.py").read_text()]))


@pytest.mark.parametrize("args", shown_commands(), ids=" ".join)
def test_every_shown_command_is_one_that_works(args: list[str]) -> None:
    """Parsed by the real app: an unknown command, option or value raises a usage error here."""
    group = get_command(app)
    context = group.make_context("vae", list(args))
    name, command, rest = group.resolve_command(context, list(args))  # type: ignore[attr-defined]
    with command.make_context(name, rest, parent=context) as parsed:
        assert parsed.params


def test_the_readme_can_be_followed_from_top_to_bottom() -> None:
    """A second training into a folder that has a run would be refused: only --resume goes on."""
    trainings = [args for block in BLOCKS for args in commands(block) if args[0] == "train"]
    assert len(trainings) >= 3
    for args in trainings:
        assert "--resume" in args or "--dataset" in args


def test_every_command_is_shown() -> None:
    assert {args[0] for args in shown_commands()} == {"train", "test", "encode", "sample", "scatter", "curves"}
    assert len(shown_commands()) >= 20


def test_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", README)
    assert len(pictures) >= 4
    assert sum((ROOT / picture).stat().st_size for picture in pictures) < 3_000_000


def test_python_blocks_run(ckpt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        code = re.sub(r'"outputs/demo[^"]*"', repr(ckpt), block)
        namespace: dict[str, object] = {}
        exec(code, namespace)
        assert {"digits", "weights"} & namespace.keys()
