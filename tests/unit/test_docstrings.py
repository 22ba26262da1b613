"""The first lines of a module are true: who it says uses it does."""

import ast
import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_SAYS = re.compile(r"(?:[Uu]sed|[Cc]alled) by ([^.;:(]*)")


def _module(path: Path) -> str:
    return ".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported(tree: ast.Module, known: set[str]) -> set[str]:
    """Return the modules of ours that a module imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & known) or {node.module}
    return found


def test_a_module_that_says_by_whom_it_is_used_is_imported_there() -> None:
    packages = ("api", "controller", "dra_driver", "kubeletplugin", "libvgpu", "deploy")
    paths = [path for package in packages for path in (_ROOT / package).rglob("*.py") if "_pb2" not in path.name]
    trees = {_module(path): ast.parse(path.read_text()) for path in paths}
    users: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for imported in _imported(tree, set(trees)) & users.keys():
            users[imported] |= set(name.split("."))
    said = {
        (name, user)
        for name, tree in trees.items()
        for clause in _SAYS.findall(ast.get_docstring(tree) or "")
        for user in re.findall(r"`(\w+)`", clause)
    }
    assert len(said) > 50
    assert [each for each in sorted(said) if each[1] not in users[each[0]]] == []
