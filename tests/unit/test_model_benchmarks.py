"""The benchmark of whole models, on one that needs no package: what it records, refuses and promises."""

from __future__ import annotations

import json
import subprocess
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnorm
from benchmarks import model_cases, models, record
from benchmarks.model_cases import MODEL_TARGETS, ModelTarget
from benchmarks.model_report import judge, report_lines
from fastnorm.memory import saved_bytes
from fastnorm.testing.zoo import ZOO, Scale, ZooModel
from tests.unit.verify_models import convnet, images

NAME = "torchvision.made_up"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A zoo of one small net, measured in this process; the workers' command lines."""
    scale = Scale(batch=6, length=8)
    entry = ZooModel(
        NAME, "torch", lambda scale: convnet(activation=nn.LeakyReLU()), lambda scale: images(), scale, scale
    )
    monkeypatch.setitem(ZOO, NAME, entry)
    commands = []
    outside = subprocess.run

    def inside(command: Any, **options: Any) -> Any:
        if "benchmarks.models" not in command:
            return outside(command, **options)
        commands.append(command)
        return types.SimpleNamespace(returncode=models.main(command[3:]))

    monkeypatch.setattr(record.subprocess, "run", inside)
    return commands


def measured(out: Path, *options: str) -> dict[str, Any]:
    assert models.main(["--only", NAME, "--quick", "--out", str(out), *options]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_the_command_records_what_it_measured(
    tiny: list[list[str]], tmp_path: Path, threads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    results = measured(tmp_path / "models.json")
    assert {"torchvision", "timm", "transformers", "torch"} <= results["versions"].keys()
    assert results["missing"] == 0 and results["machine"]["cpu"] and results["commit"]["hash"]
    rows = {(row["layout"], row["candidate"]): row for row in results["rows"]}
    names = ("eager", "fastnorm", "fastnorm_recompute", "without_norms")
    assert rows.keys() == {(layout, name) for layout in model_cases.LAYOUTS for name in names}
    for row in rows.values():
        assert row["status"] == "ok" and row["x_eager"]["p25"] <= row["x_eager"]["p75"] and row["shape"] == [6, 8]
    ours, eager = (rows["channels_last", name] for name in ("fastnorm", "eager"))
    assert (ours["replaced"], ours["fused"]) == (2, 2) and eager["x_eager"]["p50"] == 1
    assert rows["contiguous", "fastnorm_recompute"]["saved_bytes"] < ours["saved_bytes"] < eager["saved_bytes"]
    told = capsys.readouterr().out
    assert f"| {NAME} | 6x8   | channels last |" in told and "no model slower by more than 2 %" in told

    kept = (tmp_path / "models.json").read_text()
    assert models.main(["--table", str(tmp_path / "models.json")]) == 0
    assert capsys.readouterr().out.strip() in told
    again = measured(tmp_path / "models.json", "--resume")
    assert again["rows"] == json.loads(kept)["rows"] and len(tiny) == 2


def test_the_ceiling_has_no_norm_and_no_activation() -> None:
    model = models.without_norms(nn.Sequential(convnet(activation=nn.ReLU()), nn.LayerNorm(3)))
    left = {type(module) for module in model.modules()}
    assert nn.Identity in left and nn.Conv2d in left and not left & {nn.BatchNorm2d, nn.LayerNorm, nn.ReLU}


def test_channels_last_reaches_model_and_batch(tiny: list[list[str]]) -> None:
    for layout, form in zip(model_cases.LAYOUTS, (torch.contiguous_format, torch.channels_last), strict=True):
        model, question = models.prepared(model_cases.ModelCase(NAME, layout))
        weight = model.get_parameter("4.weight")
        assert weight.is_contiguous(memory_format=form) and question.args[0].is_contiguous(memory_format=form)


def test_a_wrong_model_is_not_timed(
    tiny: list[list[str]], tmp_path: Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: nn.Module) -> nn.Module:
        fastnorm.convert(model)
        model[1].eps = 1e-3
        return model

    def refusing(model: nn.Module) -> nn.Module:
        raise RuntimeError("cannot")

    eager = models.CANDIDATES["eager"]
    candidates = {"eager": eager, "fastnorm": models.Candidate(broken), "compile": models.Candidate(refusing)}
    monkeypatch.setattr(models, "CANDIDATES", candidates)
    out = tmp_path / "models.json"
    assert models.main(["--only", f"{NAME}/contiguous", "--quick", "--compile", "--out", str(out)]) == 1
    rows = {row["candidate"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["fastnorm"]["status"] == "FAIL" and "times what is allowed" in rows["fastnorm"]["message"]
    assert rows["compile"]["status"] == "ERROR" and "cannot" in rows["compile"]["message"]
    assert rows["eager"]["status"] == "ok" and "quantiles_us" not in rows["fastnorm"]


def test_names_and_bad_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["--list", "--only", "resnet18,llama"]) == 0
    assert capsys.readouterr().out.split() == [
        "torchvision.resnet18/contiguous/bench", "torchvision.resnet18/channels_last/bench",
        "transformers.llama/contiguous/bench",
    ]  # fmt: skip
    assert models.main(["--only", "no such model"]) == 2
    assert all(any(target.model in ("", name) for name in ZOO) for target in MODEL_TARGETS)


def made_up(layout: str, x_eager: float, saved: int, *, status: str = "ok", model: str = NAME) -> dict[str, Any]:
    common = {"case": f"{model}/{layout}/bench", "threads": 1, "shape": [6, 8], "message": "", "device": "cpu"}
    cost = {"saved_bytes": saved, "quantiles_us": {"p50": 1e3}, "replaced": 2, "fused": 1}
    ratios = {"x_eager": {"p25": x_eager, "p50": x_eager, "p75": x_eager}}
    ours = common | {"candidate": "fastnorm", "status": status} | (cost | ratios if status != "FAIL" else {})
    eager = common | {"candidate": "eager", "status": "ok", "x_eager": {"p25": 1.0, "p50": 1.0, "p75": 1.0}} | cost
    return {"fastnorm": ours, "eager": eager | {"saved_bytes": 100}}


def test_targets_are_judged() -> None:
    good, bad = made_up("contiguous", 1.3, 70), made_up("channels_last", 0.97, 80)
    better = ModelTarget("better", NAME, eager=1.25, better_layout=True)
    every = ModelTarget("every", eager=1 / 1.02)
    saved = ModelTarget("saved", NAME, saved=0.75)
    assert judge(better, [good, bad]) == ("1.30", [])
    assert judge(better, [bad]) == ("0.97", [bad["eager"]["case"]])
    assert judge(every, [good, bad]) == ("0.97", [bad["eager"]["case"]])
    assert judge(every, [good]) == ("1.30", [])
    assert judge(saved, [good, bad]) == ("-20%", [bad["eager"]["case"]])
    assert judge(saved, [good, made_up("x", 1.0, 1, model="another")]) == ("-30%", [])
    assert judge(better, [made_up("contiguous", 1.3, 70, model="another")]) is None
    wrong, noisy = made_up("contiguous", 0, 0, status="FAIL"), made_up("channels_last", 0.5, 70, status="noisy")
    assert judge(every, [wrong, noisy]) == ("-", [wrong["eager"]["case"]])
    assert judge(every, [good, wrong]) == ("1.30", [wrong["eager"]["case"]])
    again = ModelTarget("again", NAME, saved=0.75, candidate="fastnorm_recompute")
    assert judge(again, [bad]) is None
    recomputing = bad["fastnorm"] | {"candidate": "fastnorm_recompute", "saved_bytes": 50}
    assert judge(again, [bad | {"fastnorm_recompute": recomputing}]) == ("-50%", [])
    assert judge(saved, [bad | {"fastnorm_recompute": recomputing}]) == ("-20%", [bad["eager"]["case"]])


def test_the_tables_say_what_is_missed() -> None:
    here = {
        "machine": {"gpu": None, "cpu": "a", "cores": 2, "caches": {}},
        "date": "2026-11-22",
        "backends": {"cpu": "native"},
    }
    here |= {
        "versions": dict.fromkeys(("torch", "triton", "python", "fastnorm"), "1"),
        "commit": {"dirty": False, "hash": "c"},
    }
    cases = [made_up("contiguous", 0.9, 70), made_up("channels_last", 1.2, 75, status="noisy")]
    ceiling = cases[0]["eager"] | {"candidate": "without_norms", "x_eager": {"p25": 1.5, "p50": 1.5, "p75": 1.5}}
    cases[0] |= {"without_norms": ceiling}
    lines = report_lines(here | {"rows": [row for found in cases for row in found.values()]})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    first = [NAME, "6x8", "contiguous", "1.0", "1.0", "0.90", "0.90 .. 0.90", "1.50", "-", "0.0 -> 0.0 (-30%)"]
    assert rows[2][: len(first)] == first
    assert rows[3][5] == "1.20 (noisy)"
    assert ["no model slower by more than 2 %", "0.90", "below", f"{NAME}/contiguous/bench"] == rows[-1]
    assert report_lines(here | {"rows": []}) == ["nothing was measured"]


def test_bytes_are_counted_inside_a_block_with_hooks_of_its_own() -> None:
    """Torch applies the innermost hooks only: without `within` nothing would be counted there."""
    model = nn.Sequential(fastnorm.LayerNorm(8), nn.Linear(8, 8))
    x = torch.randn(4, 8)

    def forward() -> Tensor:
        y: Tensor = model(x)
        return y

    plain, again = saved_bytes(model, forward), saved_bytes(model, forward, within=fastnorm.recompute)
    assert plain - again == x.numel() * 4 and again > 0
