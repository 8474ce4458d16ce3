"""Rules of the layout: which room imports which, and what the published code imports."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

import shortv_export
from shortv_export import options, pipeline

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "shortv_export"

# A room imports only rooms below it in this list.
LEVELS = (
    "__main__",
    "cli",
    "optimum_plugin lmms vllm serve demo",
    "pipeline loopback",
    "journal",
    "publish usage",
    "comparison",
    "evaluation",
    "verification",
    "packaging",
    "selection",
    "measure",
    "samples",
    "base",
    "records",
    "hub",
    "files",
    "terminal",
    "progress",
    "options __init__ processes engines",
    "errors",
)
HEIGHT = {room: -level for level, rooms in enumerate(LEVELS) for room in rooms.split()}
# Modules that other rooms import directly, because the room's `__init__` must not import torch.
DIRECT = {("base", "definition")}


def modules() -> dict[str, ast.Module]:
    """Dotted name below the package -> syntax tree."""
    paths = (path for path in PACKAGE.rglob("*.py") if "optimum_plugin" not in path.parts)
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text()) for path in paths}


def imports(module: str, tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """A module's imports from the package, also inside functions: dotted name below it, imported names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = module.split(".")[: -node.level]
            yield ".".join([*parts, *([node.module] if node.module else [])]), [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "shortv_export":
            yield ".".join(str(node.module).split(".")[1:]), [each.name for each in node.names]


def test_rooms_import_lower_rooms_through_their_init() -> None:
    seen, broken = 0, []
    for module, tree in modules().items():
        room = module.split(".")[0]
        for source, names in imports(module, tree):
            for name in names if not source else [""]:
                target = [*source.split("."), name] if source else [name]
                other, *inside = [part for part in target if part]
                if other == room or name == "__version__":
                    continue
                seen += 1
                if HEIGHT[other] >= HEIGHT[room]:
                    broken.append(f"{module} imports {other}, which is not below {room}")
                elif inside and (other, inside[0]) not in DIRECT:
                    broken.append(f"{module} imports {'.'.join(target)}, not from the `__init__` of {other}")
    assert broken == []
    assert seen > 100


def test_inits_have_one_sentence_and_no_private_names() -> None:
    for room in HEIGHT:
        if (PACKAGE / room / "__init__.py").exists() and room not in ("optimum_plugin", "__init__"):
            tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
            assert len((ast.get_docstring(tree) or "").split(". ")) == 1, f"{room}: one sentence says what it is for"
            for _, names in imports(f"{room}.__init__", tree):
                assert not any(name.startswith("_") for name in names), room


def test_private_names_stay_in_their_module() -> None:
    for module, tree in modules().items():
        for source, names in imports(module, tree):
            private = [name for name in names if name.startswith("_") and name != "__version__"]
            assert not private, f"{module} takes {private} from {source}"


def test_no_module_has_the_name_of_a_standard_module() -> None:
    names = {part for module in modules() for part in module.split(".")} - {"__init__", "__main__"}
    assert names & sys.stdlib_module_names == set()


def test_no_function_takes_more_than_eight_parameters() -> None:
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                found = node.args
                names = [each.arg for each in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
                assert len([name for name in names if name not in ("self", "cls")]) <= 8, f"{module}.{node.name}"


def imported(tree: ast.Module) -> set[str]:
    """The packages that a module imports by their own names, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name.split(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found - sys.stdlib_module_names


def test_published_code_imports_torch_and_transformers_only() -> None:
    for path in (ROOT / "modeling").glob("*.py"):
        allowed = {"torch", "transformers"} | ({"PIL"} if path.name == "handler.py" else set())
        assert imported(ast.parse(path.read_text())) <= allowed, path.name


def test_serving_needs_nothing_but_vllm() -> None:
    """Of the tool, the plugin imports the list of families; of other packages, what vLLM itself requires."""
    required = {"vllm", "torch", "transformers", "numpy", "huggingface_hub", "prometheus_client"}
    for module, tree in modules().items():
        if module.split(".")[0] in ("vllm", "engines", "__init__"):
            assert imported(tree) <= required, module
            assert {source.split(".")[0] for source, _ in imports(module, tree)} <= {"vllm", "engines"}, module


def test_imported_packages_are_declared() -> None:
    """Every imported package is a dependency, of the project or of an extra."""
    declared = {canonical(Requirement(text).name) for text in requires("shortv-export") or ()}
    distributions = packages_distributions()
    for module, tree in modules().items():
        for node in ast.walk(tree):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            for package in {name.split(".")[0] for name in names} - {"shortv_export", *sys.stdlib_module_names}:
                known = {canonical(name) for name in distributions.get(package, [package])}
                assert known & declared, f"{module} imports {package}"


def test_every_option_is_declared_once() -> None:
    """No two option classes have a field of the same name."""
    declared: dict[str, set[tuple[str, str]]] = {}
    for name, kind in vars(options).items():
        if is_dataclass(kind) and kind not in (options.Help, options.Option):
            for field in fields(kind):
                declared.setdefault(field.name, set()).add((name, str(field.type)))
    assert {name: places for name, places in declared.items() if len(places) > 1} == {}


@pytest.mark.parametrize("verb", ["score", "package", "verify", "evaluate", "push"])
def test_verbs_and_their_options_are_documented(verb: str) -> None:
    function = getattr(pipeline, verb)
    documentation = str(inspect.getdoc(function))
    for name in inspect.signature(function).parameters:
        assert f"\n    {name}:" in documentation, name
    for option in options.options_of(function):
        assert option.help.text.endswith("."), option.name


def test_the_package_exports_its_verbs() -> None:
    for name in shortv_export.__all__:
        assert getattr(shortv_export, name) is not None
    # Importing a room does not hide the verb of the same name.
    assert shortv_export.push is pipeline.push
    for room in HEIGHT:
        if (PACKAGE / room).is_dir() and room not in ("optimum_plugin", "lmms"):
            import_module(f"shortv_export.{room}")
    assert shortv_export.push is pipeline.push
    assert shortv_export.evaluate is pipeline.evaluate
