"""What README and the documentation show is what the commands take."""

from __future__ import annotations

import configparser
import pathlib
import re
import shlex
from importlib.metadata import EntryPoint

import click
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown_commands(page: pathlib.Path) -> list[list[str]]:
    """Return the words of every command of litemed in the page's blocks of shell lines."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0].removeprefix(".venv/bin/").startswith("litemed-")]


def test_commands_are_found() -> None:
    assert sum(len(shown_commands(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_shown_is_one_of_the_command(page: pathlib.Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    scripts = dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in lines)
    for name, *arguments in shown_commands(page):
        command = EntryPoint(name, scripts[name.removeprefix(".venv/bin/")], "console_scripts").load()
        if isinstance(command, click.Group):
            command = command.commands[arguments.pop(0)]
        parser = command.make_parser(click.Context(command))
        parser.parse_args([word for word in arguments if word != "&&"])  # refuses options that there are not


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: pathlib.Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link
