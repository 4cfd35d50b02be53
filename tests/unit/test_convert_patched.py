"""`patched`: norms built inside the block are fastnorm's, and the constructors are what they were afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import BatchNorm2d, GroupNorm, LayerNorm

import fastnorm
from tests.unit.convert_models import tree

INITS = {cls: (cls.__init__, vars(cls).get("__init__")) for cls in (nn.BatchNorm2d, nn.LayerNorm, nn.SyncBatchNorm)}


class Sub(nn.BatchNorm2d):
    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-3)


def _as_before() -> bool:
    return all((cls.__init__, vars(cls).get("__init__")) == inits for cls, inits in INITS.items())


def test_norms_built_inside_are_ours_under_any_name() -> None:
    with fastnorm.patched():
        built = [
            BatchNorm2d(4, 1e-3),
            nn.LayerNorm(4),
            GroupNorm(2, num_channels=4),
            nn.InstanceNorm1d(4),
            nn.RMSNorm(4),
        ]
    assert [type(norm).__module__.split(".")[0] for norm in built] == ["fastnorm"] * 5
    assert isinstance(built[0], BatchNorm2d)
    assert built[0].eps == 1e-3
    assert torch.equal(built[0](torch.ones(2, 4, 3, 3)), torch.zeros(2, 4, 3, 3))
    assert type(BatchNorm2d(4)) is BatchNorm2d
    assert _as_before()


def test_restored_after_an_exception_and_after_nested_blocks() -> None:
    with pytest.raises(ZeroDivisionError), fastnorm.patched():
        with fastnorm.patched():
            assert type(LayerNorm(4)) is fastnorm.LayerNorm
        assert type(LayerNorm(4)) is fastnorm.LayerNorm
        raise ZeroDivisionError
    assert type(LayerNorm(4)) is LayerNorm
    assert _as_before()


def test_as_a_decorator() -> None:
    @fastnorm.patched()
    def build() -> nn.Module:
        return nn.LayerNorm(4)

    assert type(build()) is fastnorm.LayerNorm
    assert type(LayerNorm(4)) is LayerNorm


def test_subclasses_lazy_layers_and_copies_are_not_reached() -> None:
    plain = nn.BatchNorm2d(4)
    with fastnorm.patched():

        class Inside(nn.GroupNorm):
            pass

        assert type(Sub(4)) is Sub
        assert type(Inside(2, 4)) is Inside
        assert type(copy.deepcopy(plain)) is nn.BatchNorm2d
        lazy = nn.LazyBatchNorm2d()
        assert type(lazy) is nn.LazyBatchNorm2d
        lazy(torch.randn(2, 4, 3, 3))
        assert type(lazy) is nn.BatchNorm2d


def test_errors_of_the_constructor_come_through() -> None:
    with fastnorm.patched(), pytest.raises(ValueError, match="num_channels"):
        nn.GroupNorm(3, 4)


def test_convert_fuses_and_revert_gives_torchs_classes() -> None:
    with fastnorm.patched():
        model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    report = fastnorm.convert(model)
    assert (len(report.replaced), len(report.fused)) == (0, 1)
    fastnorm.revert(model)
    assert [kind for kind, _ in tree(model).values()] == [nn.Sequential, nn.BatchNorm2d, nn.ReLU]
