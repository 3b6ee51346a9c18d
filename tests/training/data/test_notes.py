"""Notes on the data: each once in a command of many steps, every time elsewhere."""

import contextlib

import pytest

from training.data.notes import said_once, say


def test_each_is_said_once_within_a_command_and_again_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    with said_once(["shown before"]):
        say(["shown before", "a", "a"])
        say(["a", "b"])
        with said_once():  # a step that is such a command itself
            say(["a", "shown before", "c"])
        say(["d"])
    assert capsys.readouterr().err.splitlines() == ["a", "b", "c", "d"]
    say(["a", "shown before"])
    say(["a"])
    assert capsys.readouterr().err.splitlines() == ["a", "shown before", "a"]


def test_an_error_ends_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(ValueError), said_once():
        say(["a"])
        raise ValueError("stop")
    say(["a"])
    assert capsys.readouterr().err == "a\na\n"
