"""The wheel's content, and `optimum-cli export shortv` from the wheel and from the checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling", reason="builds the wheel")
pytest.importorskip("optimum.commands.optimum_cli")

ROOT = Path(__file__).resolve().parents[1]
OPTIMUM = Path(sys.executable).with_name("optimum-cli")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and this environment's packages, without the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib*/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    _link(Path(sysconfig.get_path("purelib")), site)
    return folder / "bin" / "python"


def _link(source: Path, target: Path) -> None:
    """Links what `target` lacks, except the installed checkout and `.pth` files."""
    for path in source.iterdir():
        if "shortv" in path.name or path.suffix == ".pth":
            continue
        if not (target / path.name).exists():
            (target / path.name).symlink_to(path)
        elif path.is_dir():
            _link(path, target / path.name)


def test_content(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = {name for name in names if ".dist-info/" in name}
    package = ROOT / "shortv_export"
    sources = {
        f"shortv_export/{path.relative_to(package if path.is_relative_to(package) else ROOT)}"
        for folder in ("shortv_export", "modeling", "model_cards")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "optimum_plugin"} & set(path.parts)
    }
    assert names - information == sources | {"optimum/commands/register/register_shortv.py"}
    # An `__init__.py` would hide the other parts of optimum's namespace package (PEP 420).
    assert not any(name.startswith("optimum/") and name.endswith("__init__.py") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in information)


def test_the_wheel_installs_a_command(installed: Path, tmp_path: Path) -> None:
    command = [installed.with_name("shortv-export"), "--version"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == version("shortv-export")


@pytest.mark.parametrize("kind", ["wheel", "checkout"])
def test_optimum(kind: str, request: pytest.FixtureRequest, tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    python = request.getfixturevalue("installed") if kind == "wheel" else sys.executable
    if kind == "checkout" and not OPTIMUM.exists():
        pytest.skip("optimum-cli is not installed")

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [str(python), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    where = run("-c", "import shortv_export; print(shortv_export.__file__)").stdout
    assert where.startswith(str(ROOT)) == (kind == "checkout")
    base, options = tiny_base(), ["--frozen-layers", "1,3", "--license", "mit"]
    made = run(OPTIMUM, "export", "shortv", "--model", base, "by-optimum", *options)
    assert made.returncode == 0, made.stderr
    assert "2 of 4 layers frozen" in made.stdout
    assert run("-m", "shortv_export", "package", base, "by-tool", *options).returncode == 0
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("by-optimum", "by-tool")
    )
    assert one == two
    assert "license: mit\n" in one["README.md"].decode()

    failed = run(OPTIMUM, "export", "shortv", "--model", "/nowhere", "out", "--preset", "paper")
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("error: there is no folder '/nowhere'")
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "out").exists()
    assert run(OPTIMUM, "export", "shortv", "--model", base).returncode == 2
    assert "shortv" in run(OPTIMUM, "export", "--help").stdout


def test_options_are_those_of_the_package_command() -> None:
    from argparse import ArgumentParser

    from optimum.commands.register.register_shortv import ShortVExportCommand
    from typer.main import get_command

    from shortv_export import cli

    package = get_command(cli.app).commands["package"]  # type: ignore[attr-defined]
    options = {option for parameter in package.params for option in parameter.opts if option.startswith("--")}
    parser = ArgumentParser()
    ShortVExportCommand.parse_args(parser)
    theirs = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    assert "--num-frozen" in parser.format_help()  # fails if a help text has a bare percent sign
    assert theirs - {"--model", "--help"} == options - {"--recipe", "--json", "--quiet", "--token", "--help"}


def test_optimum_starts_without_heavy_imports() -> None:
    code = (
        "import sys\nimport optimum.commands.register.register_shortv\n"
        "sys.exit(', '.join({'torch', 'transformers', 'typer', 'shortv_export'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
