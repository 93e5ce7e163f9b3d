"""Requests that cannot be right: exit code 2, one line that suggests what to do, no traceback without --debug."""

import pytest
from click.testing import CliRunner, Result

from subbyte.cli import COMMANDS, main


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_help_lists_every_command_with_a_sentence() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        line = next(line for line in result.output.splitlines() if line.strip().startswith(f"{name} "))
        assert len(line.split()) > 3, line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("trian",), "Did you mean 'train'"),
        (("train", "resnet9", "--out", "x"), "Did you mean 'resnet8'"),
        (("train", "mlp", "--scheme", "ternery", "--out", "x"), "Did you mean 'ternary'"),
        (("train", "mlp", "--data", "digit", "--out", "x"), "Did you mean 'digits'"),
        (("train", "mlp", "--loss", "cross_entropy", "--out", "x"), "Did you mean 'cross-entropy'"),
    ],
)
def test_an_unknown_name_is_a_usage_error_with_the_nearest_name(
    arguments: tuple[str, ...], suggestion: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert suggestion in result.output
    assert "Traceback" not in result.output


def test_a_missing_file_is_a_usage_error() -> None:
    for arguments in (("compile", "no.onnx"), ("run", "no.subbyte", "--input", "x.npy"), ("bench", "no.subbyte")):
        result = call(*arguments)
        assert result.exit_code == 2, (arguments, result.output)


def test_debug_shows_the_error_itself() -> None:
    result = call("--debug", "train", "resnet9", "--out", "x")
    assert type(result.exception).__name__ == "UnknownNameError"


@pytest.mark.parametrize("name", ["targets", "schemes", "models", "losses", "formats"])
def test_registries_print_a_line_for_each_entry(name: str) -> None:
    result = call(name)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) >= 2
    assert all(len(line.split()) > 2 for line in lines)
