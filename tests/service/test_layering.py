"""The one dependency rule: service/ imports neither training nor torch."""

import ast
import subprocess
import sys
from pathlib import Path

import service

ROOT = Path(service.__file__).parent
FORBIDDEN = {"torch", "torchvision", "training", "sklearn", "scipy", "timm"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_no_module_imports_training_or_torch() -> None:
    modules = list(ROOT.rglob("*.py"))
    assert {"app.py", "bundle.py", "images.py"} <= {m.name for m in modules}
    assert {m.name: bad for m in modules if (bad := imported(m) & FORBIDDEN)} == {}


def test_no_http_below_the_app() -> None:
    web = {"fastapi", "starlette", "uvicorn"}
    for name in ("bundle", "decision", "images", "engine", "batcher", "errors", "settings", "metrics", "model"):
        assert not imported(ROOT / f"{name}.py") & web, name


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys, service.app, service.__main__; print(sorted({'torch', 'training', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
