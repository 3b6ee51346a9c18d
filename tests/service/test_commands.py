"""The console command `tailguard`: it offers what both sides offer, loads what a command needs, says what lacks."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from service import __main__ as service_side
from service import commands
from training import __main__ as training_side
from training import config

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = "models/cifar10-lt/1"
NAMES = [name for section in commands.SECTIONS for name in section.commands]


def tailguard(*arguments: str, without: tuple[str, ...] = (), then: str = "") -> subprocess.CompletedProcess[str]:
    """`tailguard` in a fresh interpreter in which the modules `without` cannot be imported; `then` runs after it."""
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({without!r}))\n"
        f"from service import commands\nsys.argv[0] = 'bin/tailguard'\nstatus = commands.main({list(arguments)!r})\n"
        f"{then}\nsys.exit(status)"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def offered(module: str) -> set[str]:
    return {name for section in commands.SECTIONS if section.module == module for name in section.commands}


def test_the_table_names_the_commands_of_the_training_side() -> None:
    assert offered(commands.TRAINING) == set(training_side.Command.model_fields)


def test_the_table_names_the_commands_of_the_service(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        service_side.parse(["--help"], "tailguard")
    listed = capsys.readouterr().out.split("{")[1].split("}")[0]
    assert offered(commands.SERVICE) == set(listed.split(","))


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    heavy = "print(sorted({'numpy', 'pydantic', 'argparse', 'torch', 'fastapi', 'onnxruntime'} & set(sys.modules)))"
    done = tailguard("--help", then=heavy)
    assert done.returncode == 0
    for section in commands.SECTIONS:
        assert f"\n{section.title}:\n" in done.stdout
        for name, line in section.commands.items():
            assert f"  {name:11} {line}\n" in done.stdout
    assert done.stdout.endswith("[]\n")
    assert len(NAMES) == len(set(NAMES))


def test_the_project_installs_it_as_a_console_command() -> None:
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["tailguard"]
    module, _, function = script.partition(":")
    assert getattr(importlib.import_module(module), function) is commands.main


@pytest.mark.parametrize("name", ["serve", "score", "train", "export"])
def test_help_of_a_command_shows_the_command_that_was_typed(name: str) -> None:
    done = tailguard(name, "--help")
    assert done.stdout.startswith(f"usage: tailguard {name} "), done


@pytest.mark.parametrize(
    ("given", "hint"), [(["serve", "--port", "1"], True), (["score", "x", "--out", "y", "-q"], False)]
)
def test_an_option_of_serve_is_a_variable(given: list[str], hint: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        service_side.parse(given, "tailguard")
    said = capsys.readouterr().err
    assert "unrecognized arguments: -" in said
    assert ("TAILGUARD_PORT=8001" in said) == hint


def test_the_service_runs_without_torch_and_without_the_training_package() -> None:
    done = tailguard("inspect", BUNDLE, without=("torch", "training"))
    assert (done.returncode, done.stderr) == (0, "")
    assert '"cifar10-lt"' in done.stdout


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("torch", "tailguard train needs torch, which is not installed: pip install 'tailguard[train]'\n"),
        ("training", "tailguard train needs the package training, which is not here: "),
    ],
)
def test_training_says_what_is_not_installed(without: str, said: str) -> None:
    done = tailguard("train", "--dataset", "digits", without=(without,))
    assert done.returncode == 1
    assert done.stderr.startswith(said)


def test_the_audit_runs_without_torch(tmp_path: Path) -> None:
    for i, name in enumerate(["ant", "bee"] * 3):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (40 * i, 99, 7)).save(folder / f"{i}.png")
    done = tailguard("audit", str(tmp_path), without=("torch",))
    assert done.returncode == 0, done.stderr
    assert "ADVICE" in done.stdout
    assert "no time was measured" in done.stdout


def test_serving_without_onnxruntime_names_the_extra() -> None:
    done = tailguard("serve", without=("onnxruntime",))
    assert (done.returncode, done.stderr) == (
        1, "tailguard serve needs onnxruntime, which is not installed: pip install 'tailguard[cpu]'\n",
    )  # fmt: skip


def test_an_unknown_command_is_named_with_the_nearest() -> None:
    done = tailguard("trian")
    assert (done.returncode, done.stderr) == (2, "tailguard: there is no command 'trian': did you mean train?\n")


@pytest.mark.parametrize(
    ("called", "named"), [("/usr/bin/tailguard", "tailguard"), ("training/__main__.py", "python -m training")]
)
def test_messages_recommend_the_command_that_was_typed(
    called: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [called, "audit"])
    assert config.program() == named


def test_a_broken_import_of_the_project_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.web", None)
    monkeypatch.delitem(sys.modules, "service.__main__")
    with pytest.raises(ModuleNotFoundError, match=r"service\.web"):
        commands.main(["serve"])


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a promotion that waited, or a start before the server ran, it was a traceback."""

    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(service_side, "inspect", interrupted)
    assert service_side.main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "tailguard: stopped by SIGINT\n"


def test_output_that_is_cut_short_is_no_error() -> None:
    code = "from service.commands import main; raise SystemExit(main())"
    command = f"{sys.executable} -c {code!r} inspect models/cifar10-lt/1"
    done = subprocess.run(f"{command} | head -n 1", shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""
