"""The shape of the project: sizes, names, floors, and what a bare install can import."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import rackscale

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "rackscale"
MODULES = sorted(SOURCE.rglob("*.py"))

ENGINES = {
    "accelerate",
    "pyarrow",
    "ray",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
}
NEED_ENGINES = (SOURCE / "programs", SOURCE / "runtime" / "ray")
"""What runs inside a gang, and the executor that is made of an engine."""


def name_of(module: Path) -> str:
    parts = module.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_files_are_short(module: Path) -> None:
    assert len(module.read_text("utf-8").splitlines()) < 500


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_names_say_what_is_inside(module: Path) -> None:
    vague = {"util", "utils", "helper", "helpers", "common", "misc", "base", "core"}
    assert not vague & set(module.relative_to(SOURCE).with_suffix("").parts)


def test_floors_hold() -> None:
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


def test_the_core_imports_without_engines() -> None:
    core = [name_of(m) for m in MODULES if not set(NEED_ENGINES) & set(m.parents) and m.stem != "__main__"]
    script = (
        "import importlib, sys\n"
        f"for name in {core}: importlib.import_module(name)\n"
        f"print(sorted({ENGINES} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_the_command_line_starts_without_numpy() -> None:
    script = "import sys, rackscale.cli.app; print(sorted({'numpy', 'rackscale.sizing'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_it_is_this_checkout_that_is_tested() -> None:
    assert Path(rackscale.__file__).parent == SOURCE


def test_the_version_is_the_package_s() -> None:
    assert rackscale.__version__ == importlib.metadata.version("rackscale")


def test_types_are_published() -> None:
    assert (SOURCE / "py.typed").exists()
