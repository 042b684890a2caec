"""How the source hangs together: imports go downwards and in no circle, and there is not too much of it."""

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What each package may import; export and train do not know each other.
BELOW = {
    "runtime": set(),
    "models": {"runtime"},
    "export": {"models", "runtime"},
    "train": {"models", "runtime"},
    "benchmarks": {"export", "models", "runtime", "train"},
}
MODULE_LINES = 300
SOURCE_LINES = 19_000
TEST_LINES = 16_000


def source_of(package: str) -> list[pathlib.Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: pathlib.Path) -> str:
    """The name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("litemed", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {name_of(path): path for package in BELOW for path in source_of(package)}


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that are there for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from statements(child)


def imports_of(name: str) -> set[str]:
    """The modules of this project that a module imports anywhere, in functions too."""
    found = set()
    for node in statements(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports by a relative name"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in MODULES else node.module for one in inner}
    return {one for one in found if one.split(".")[0] == "litemed"}


IMPORTS = {name: imports_of(name) for name in MODULES}


@pytest.mark.parametrize("package", BELOW)
def test_imports_go_downwards(package):
    allowed = BELOW[package] | {package}
    wrong = [
        f"{name} imports {imported}"
        for name, imports in IMPORTS.items()
        if name.split(".")[1] == package
        for imported in sorted(imports)
        if imported.split(".")[1] not in allowed
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    try:
        order = list(graphlib.TopologicalSorter(IMPORTS).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))
    assert set(order) >= MODULES.keys()


def test_no_module_is_long():
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert [name for name, count in lines.items() if count > MODULE_LINES] == []


def test_there_is_not_too_much_of_it():
    def total(paths: list[pathlib.Path]) -> int:
        return sum(len(path.read_text().splitlines()) for path in paths)

    assert total(list(MODULES.values())) <= SOURCE_LINES
    assert total(source_of("tests")) <= TEST_LINES
