"""The rules of the packages, kept by walking every import: no module is named here, only packages and their order."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("service", "training")
MOST_LOOSE_FILES = 8
MOST_LINES = 250

# Each package may import itself and those above it in its list. Loose modules stand under their own names.
ORDER = {
    "service": (
        "errors", "logs", "process", "settings", "commands", "contract", "costs", "bundles", "observe", "ledger",
        "review", "inference", "convert", "score", "recalibrate", "deploy", "runtime", "web", "browser", "client",
        "__main__",
    ),
    "training": (
        "layout", "config", "data", "places", "network", "scores", "methods", "runs", "evaluation", "export", "audit",
        "tables", "checks", "tracking", "trainer", "bench", "finished", "table", "fit", "learn", "__main__",
    ),
}  # fmt: skip
# What a package may import of the project beside itself, where that is less than everything above it.
ONLY = {"service.contract": {"service.errors"}}
# What a package may not import at all, whoever made it.
NEVER = {
    "service": {"torch", "torchvision", "training", "sklearn", "scipy", "timm"},
    "service.contract": {"onnxruntime", "fastapi", "starlette", "uvicorn"},
    "service.inference": {"fastapi", "starlette", "uvicorn", "httptools"},
    "service.ledger": {"fastapi", "starlette", "uvicorn"},
    "service.observe": {"fastapi", "starlette", "uvicorn"},
    "service.review": {"fastapi", "starlette", "uvicorn", "onnxruntime"},
    "training": {"fastapi", "starlette", "uvicorn"},
}

# Programs of their own: the service starts them and never imports them, so they may load what it may not.
PROGRAMS = {"service/review/clustering.py": {"sklearn", "scipy"}}


def modules(side: str) -> list[Path]:
    return sorted((ROOT / side).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports, at its top and inside its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the top of the project"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package(name: str) -> str:
    """'service.web.routes.classify' → 'service.web'."""
    return ".".join(name.split(".")[:2])


def package_of(path: Path) -> str:
    return package(".".join(path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("side", SIDES)
def test_every_package_has_its_place_in_the_order(side: str) -> None:
    found = {package_of(path).partition(".")[2] for path in modules(side)}
    assert found - {"__init__"} == set(ORDER[side])


@pytest.mark.parametrize("side", SIDES)
def test_imports_run_one_way(side: str) -> None:
    order = ORDER[side]
    wrong = []
    for path in modules(side):
        own = package_of(path)
        for name in imported(path):
            target = package(name)
            if name.split(".")[0] != side or target in (own, side):
                continue
            if target.partition(".")[2] not in order:
                continue  # a name of the side's own __init__
            if order.index(target.partition(".")[2]) > order.index(own.partition(".")[2]):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
            if own in ONLY and target not in ONLY[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}, beyond {sorted(ONLY[own])}")
    assert wrong == []


def test_training_imports_only_the_contract_of_service() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("training")
        for name in imported(path)
        if name.split(".")[0] == "service" and not f"{name}.".startswith("service.contract.")
    ]
    assert wrong == []


@pytest.mark.parametrize("where", NEVER)
def test_what_a_package_never_imports(where: str) -> None:
    folder = ROOT / where.replace(".", "/")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(folder.rglob("*.py"))
        for name in imported(path)
        if name.split(".")[0] in NEVER[where] - PROGRAMS.get(str(path.relative_to(ROOT)), set())
    ]
    assert wrong == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_imports_a_program(program: str) -> None:
    name = program.removesuffix(".py").replace("/", ".")
    assert [path for path in modules("service") for found in imported(path) if f"{found}.".startswith(f"{name}.")] == []
    assert [name for name in imported(ROOT / program) if name.split(".")[0] in SIDES] == []


@pytest.mark.parametrize("side", SIDES)
def test_few_files_lie_loose_and_none_is_long(side: str) -> None:
    loose = [path.name for path in (ROOT / side).glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= MOST_LOOSE_FILES, loose
    long = {
        str(path.relative_to(ROOT)): n
        for path in modules(side)
        if (n := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert long == {}


@pytest.mark.parametrize("side", SIDES)
def test_every_package_says_which_question_it_answers(side: str) -> None:
    for path in (ROOT / side).rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert said, f"{path.relative_to(ROOT)} needs a docstring"


@pytest.mark.parametrize(
    ("loaded", "unwanted"),
    [
        ("service.web.app", ("torch", "training", "sklearn")),
        ("training.trainer, training.__main__", ("sklearn", "scipy.stats", "pandas", "matplotlib")),  # as long as torch
    ],
)
def test_nothing_heavy_is_loaded_to_serve_or_to_begin_training(loaded: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {loaded}\nprint(sorted(set({unwanted}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
