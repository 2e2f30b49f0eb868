"""The rules of the house, checked by walking the packages: nothing here names a module that a newcomer could forget."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from service.cli import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "service", "client")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
IMPORTABLE = [path for path in MODULES if "samples" not in path.parts]

MAX_MODULE_LINES = 300  # without empty ones
MAX_FUNCTION_LINES = 40  # without signature and docstring
CLOCKS = {f"time.{name}{suffix}" for name in ("time", "monotonic", "perf_counter") for suffix in ("", "_ns")}
CLOCKS |= {"datetime.now", "datetime.utcnow"}
MAY_READ_THE_CLOCK = ("client/", "models/bench", "service/auth", "service/commands/", "service/engine")
ENVIRONMENT = {"os.environ", "os.getenv", "os.putenv"}
MAY_READ_THE_ENVIRONMENT = ("service/settings.py",)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def calls_and_attributes(path: Path) -> Iterator[str]:
    """Dotted names used in a module, such as `os.environ` and `time.monotonic`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in {"os", "time", "datetime"}:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_without(blocked: list[str], modules: list[str]) -> subprocess.CompletedProcess[str]:
    """Import `modules` in a process of their own, in which importing anything of `blocked` fails."""
    code = f"import sys, importlib\nsys.modules.update(dict.fromkeys({blocked}))\n"
    code += f"for name in {modules}: importlib.import_module(name)\n"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_imports_go_the_allowed_ways() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_serving_runs_without_torch_installed() -> None:
    service = [name_of(path) for path in IMPORTABLE if path.parts[-2] == "service"]
    done = import_without(["torch", "matplotlib", "PIL"], [*service, "service.commands.serve", "models.network"])
    assert done.returncode == 0, done.stderr


def test_client_runs_on_the_base_installation() -> None:
    client = [name_of(path) for path in IMPORTABLE if "client" in path.parts]
    done = import_without(sorted(EXTRAS), [*client, "service.cli", "service.commands.listen"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module_is_readable(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "says nothing of what it is for"
    assert len([line for line in text.splitlines() if line.strip()]) <= MAX_MODULE_LINES, "too long for one sitting"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_functions_are_short(path: Path) -> None:
    long = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1 if ast.get_docstring(node) else 0 :]
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            if lines > MAX_FUNCTION_LINES:
                long[node.name] = lines
    assert not long


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_environment_and_clock_stay_in_their_rooms(path: Path) -> None:
    used = set(calls_and_attributes(path))
    if not relative(path).startswith(MAY_READ_THE_ENVIRONMENT):
        assert not used & ENVIRONMENT
    if not relative(path).startswith(MAY_READ_THE_CLOCK):
        assert not used & CLOCKS


@pytest.mark.parametrize(
    ("room", "names"),
    [*((room, CLOCKS) for room in MAY_READ_THE_CLOCK), *((room, ENVIRONMENT) for room in MAY_READ_THE_ENVIRONMENT)],
)
def test_rooms_need_what_they_may(room: str, names: set[str]) -> None:
    assert any(names & set(calls_and_attributes(path)) for path in MODULES if relative(path).startswith(room))


def imported(path: Path) -> set[str]:
    """Packages that a module imports, at its top or anywhere else."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {*PACKAGES, "deploy"}


def declared(extra: str) -> set[str]:
    """Packages that the distributions of an extra bring; the base installation's for the empty name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["optional-dependencies"][extra] if extra else project["dependencies"]
    names = {re.split(r"[<>=\[]", requirement)[0].replace("_", "-").lower() for requirement in requirements}
    return {
        package
        for package, distributions in packages_distributions().items()
        if names & {distribution.replace("_", "-").lower() for distribution in distributions}
    }


def test_every_import_is_a_declared_dependency() -> None:
    used = set().union(*map(imported, MODULES)) - declared("")
    assert used <= set(EXTRAS)
    assert {package: extra for package, extra in EXTRAS.items() if package not in declared(extra)} == {}


def test_modules_hide_no_standard_ones() -> None:
    assert not {path.stem for path in MODULES if path.parent.name in PACKAGES} & sys.stdlib_module_names - {"__init__"}


def test_no_path_of_one_persons_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    personal = re.compile(r"/(home|Users|work)/\w+")
    found = []
    for name in filter(None, listed.split("\0")):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in content and personal.search(content.decode(errors="replace")):
            found.append(name)
    assert not found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (built,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_wheel_brings_every_module_and_what_lies_beside_them(wheel: set[str]) -> None:
    data = [
        path for folder in ("models/weights", "client/web", "client/samples") for path in (ROOT / folder).rglob("*.*")
    ]
    missing = {relative(path) for path in [*MODULES, *data] if "__pycache__" not in path.parts} - wheel
    assert not missing


def test_wheel_brings_nothing_else(wheel: set[str]) -> None:
    rooms = {name.split("/")[0] for name in wheel}
    assert {room for room in rooms if not room.endswith(".dist-info")} == set(PACKAGES)
