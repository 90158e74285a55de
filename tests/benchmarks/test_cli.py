"""The command `backbench`: each word runs the tool it names, with the tool's own options."""

from __future__ import annotations

import subprocess
import sys

import pytest

from backbench.errors import ConfigError
from benchmarks import cli


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_shows_the_words_to_type(name, capsys):
    with pytest.raises(SystemExit) as left:
        cli.dispatch([name, "--help"])
    assert left.value.code == 0
    assert f"usage: backbench {name} " in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    assert cli.dispatch([]) == 0
    shown = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert name in shown
        assert command.help in shown


def test_an_unknown_command_names_the_nearest():
    with pytest.raises(ConfigError, match=r"backbench runn: unknown command; did you mean 'run'\?"):
        cli.dispatch(["runn"])


def test_a_command_runs_its_tool(capsys):
    assert cli.dispatch(["zoo", "list", "--method", "barlow"]) == 0
    assert "barlow_twins_r50_imagenet" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "pretrain", "demo"])
def test_a_folder_without_a_name_is_refused(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.dispatch([command, "--out", ""])
    assert left.value.code == 2
    assert "--out: the folder's name is empty" in capsys.readouterr().err


def test_version(capsys):
    assert cli.dispatch(["--version"]) == 0
    assert capsys.readouterr().out.startswith("backbench ")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_their_options(shell, capsys):
    assert cli.dispatch(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*cli.COMMANDS, "download", "--data-root", "--print-completion"):
        assert word in script


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom benchmarks import cli\nfor name in cli.COMMANDS:\n"
        "    try: cli.dispatch([name, '--help'])\n    except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'timm', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
