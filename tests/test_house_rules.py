"""The project's own rules, checked on the sources and on what the processes really import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine import registry

ROOT = Path(__file__).resolve().parent.parent
HEAVY_FILES = ("parts.py", "fields.py", "registry.py")
LIGHT = tuple(f"engine/{path.name}" for path in (ROOT / "engine").glob("*.py") if path.name not in HEAVY_FILES)
LIGHT_FOLDERS = ("engine/log", "engine/service", "engine/commands")
QT = ("PySide6", "pyqtgraph", "shiboken6")


def sources(*places: str) -> list[Path]:
    found = []
    for place in places:
        path = ROOT / place
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return found


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it unless told otherwise; type checking does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def names(path: Path, roots: tuple[str, ...]) -> list[str]:
    return sorted(m for m in imports(path) if m.split(".")[0] in roots)


def test_only_the_heavy_wing_imports_torch() -> None:
    light = sources("main.py", "app", *LIGHT, *LIGHT_FOLDERS)
    offenders = {str(path.relative_to(ROOT)): names(path, ("torch",)) for path in light if names(path, ("torch",))}
    assert offenders == {}


def test_the_engine_imports_no_qt() -> None:
    offenders = {str(p.relative_to(ROOT)): names(p, QT) for p in sources("engine") if names(p, QT)}
    assert offenders == {}


HEAVY = ("engine.parts", "engine.kit", "engine.methods", "engine.training", "engine.registry", "engine.fields")


def test_the_light_wing_and_the_app_import_nothing_of_the_heavy_wing() -> None:
    offenders = {}
    for path in sources("main.py", "app", *LIGHT, *LIGHT_FOLDERS):
        found = [m for m in imports(path) if m.startswith(HEAVY)]
        if found:
            offenders[str(path.relative_to(ROOT))] = found
    assert offenders == {}


def test_arrows_point_down() -> None:
    """methods -> parts, kit; training -> methods only through the registry; nothing in the engine imports the app."""
    for path in sources("engine"):
        assert not [m for m in imports(path) if m == "app" or m.startswith("app.")], path
    for path in sources("engine/methods", "engine/kit"):
        found = [m for m in imports(path) if m.startswith(("engine.training", "engine.registry", "engine.service"))]
        assert not found, f"{path}: {found}"
    for path in sources("engine/kit"):
        assert not [m for m in imports(path) if m.startswith("engine.methods.")], path


def test_no_method_imports_another_slots_private_names() -> None:
    for path in sources("engine/methods"):
        for module in imports(path):
            if module.startswith("engine.methods.") and any(part.startswith("_") for part in module.split(".")):
                raise AssertionError(f"{path} imports {module}")


PROGRAMS = ["import main", "import engine.service.__main__", "import engine.commands", "import app.start, app.window"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_really_gets_imported(program: str) -> None:
    """Not what the sources say but what a process has loaded."""
    look = f"import sys; {program}; print([m for m in sys.modules if m.split('.')[0] in ('torch', *{QT!r})])"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    wrong = [m for m in loaded if m.split(".")[0] == "torch" or "app" not in program]
    assert wrong == []


def methods() -> list[str]:
    return sorted(registry.classes())


# The ids of parts that are also arguments of others' own: decode(errors="replace"), Column(overflow="fold"), and the
# member of the layer protocol that one of them calls.
AMBIGUOUS = {"replace", "fold"}


def test_nothing_outside_the_methods_names_a_method() -> None:
    ids = set(methods())
    modules = {cls.__module__ for cls in registry.classes().values()}
    offenders = []
    for path in sources("main.py", "app", "engine"):
        if path.is_relative_to(ROOT / "engine" / "methods"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            named = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
            if named and node.value in ids - AMBIGUOUS:
                offenders.append((str(path.relative_to(ROOT)), node.lineno, node.value))
        offenders += [(str(path.relative_to(ROOT)), 0, m) for m in imports(path) if m in modules]
    assert offenders == []


def test_no_file_speaks_of_where_it_was_built() -> None:
    """The project stands alone."""
    for path in [*sources("main.py", "app", "engine"), *(ROOT / "resources").rglob("*.toml"), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        assert not re.search(r"\.\./shared|/work/|build sheet", text), path


def test_top_level_is_fixed() -> None:
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    if not any(kept):
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in kept if name}
    plain = {"README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", ".ci", ".gitignore"}
    assert top <= {"app", "engine", "resources", "tests", "main.py", "pyproject.toml"} | plain
