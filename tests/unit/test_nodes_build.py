"""The autograd nodes' module: how it is named, and that a build goes on without it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch

from build_tools.nodes_steps import build_nodes, nodes_module, plan_nodes
from build_tools.toolchain import find_toolchain
from fastnorm.ops import native

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_looked_for_under_the_name_it_is_built_with() -> None:
    for version in (torch.__version__, "2.12.0+cu130", "2.14.0.dev20260101", "2.13.0a0+git1234"):
        assert nodes_module(version) == f"fastnorm.{native.nodes_module(version)}"


def test_names_of_two_torches_differ() -> None:
    assert len({nodes_module(version) for version in ("2.13.0+cpu", "2.13.0+cu130", "2.13.1+cpu")}) == 3


def test_a_failing_compiler_costs_the_nodes_only(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "csrc" / "nodes", tmp_path / "csrc" / "nodes")
    said: list[str] = []
    tools = dataclasses.replace(find_toolchain(), cxx=("false",), torch_version="2.99.0")
    assert build_nodes(tools, tmp_path, said.append) == {}
    assert "torch 2.99.0" in said[0] and "works without" in said[1]


def test_the_sanitized_build_leaves_them_out() -> None:
    tools = dataclasses.replace(find_toolchain(), sanitize=True)
    assert build_nodes(tools, ROOT, print) == {}


def test_every_file_is_compiled_for_the_module() -> None:
    plan = plan_nodes(find_toolchain(), ROOT)
    sources = {path.name for path in (ROOT / "csrc" / "nodes").glob("*.cpp")}
    assert {Path(step.inputs[0]).name for step in plan.steps if step.is_compile} == sources
