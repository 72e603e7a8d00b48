"""What the README shows is what the commands take."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from vaecli.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def shown_commands() -> list[list[str]]:
    """The arguments of every `vae ...` in the README's shell blocks and in the commands' own help."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    blocks += [
        (ROOT / "vaecli/cli.py").read_text(),
    ]
    found = []
    for line in "\n".join(blocks).splitlines():
        match = re.match(r"\s*(?:ckpt=\$\()?vae (\w.*?)\)?(?: \|.*)?$", line)
        if match:
            found.append(shlex.split(match[1]))
    return found


@pytest.mark.parametrize("args", shown_commands(), ids=" ".join)
def test_every_shown_command_is_one_that_works(args: list[str]) -> None:
    """Parsed by the real app: an unknown command, option or value raises a usage error here."""
    group = get_command(app)
    context = group.make_context("vae", list(args))
    name, command, rest = group.resolve_command(context, list(args))  # type: ignore[attr-defined]
    with command.make_context(name, rest, parent=context) as parsed:
        assert parsed.params


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
