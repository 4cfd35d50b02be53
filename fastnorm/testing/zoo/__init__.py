"""Models nobody here wrote, with random weights: what the tests convert and the benchmarks time.

model, batch = ZOO["torchvision.resnet18"].model(), ZOO["torchvision.resnet18"].batch()
loss_of(call(model, batch)).backward()
"""

from __future__ import annotations

from torch import nn

from fastnorm.testing.zoo import transformers
from fastnorm.testing.zoo.packages import import_package, import_torchvision
from fastnorm.testing.zoo.table import (
    CLASSES,
    Batch,
    Scale,
    Size,
    ZooModel,
    call,
    images,
    logits_of,
    loss_of,
    pixels,
    words,
)

__all__ = [
    "ZOO",
    "Batch",
    "Scale",
    "Size",
    "ZooModel",
    "call",
    "import_package",
    "import_torchvision",
    "logits_of",
    "loss_of",
]


def _torchvision(name: str, small: Scale, bench: Scale, *, smooth: bool = False) -> ZooModel:
    def make(scale: Scale) -> nn.Module:
        model = import_torchvision().models.get_model(name, num_classes=CLASSES)
        assert isinstance(model, nn.Module)
        return model

    return ZooModel(f"torchvision.{name}", "torchvision", make, images, small, bench, smooth=smooth)


def _timm(name: str, small: Scale, bench: Scale, *, smooth: bool = False, sized: bool = False) -> ZooModel:
    """`sized`: the model is made for one size of images."""

    def make(scale: Scale) -> nn.Module:
        size = {"img_size": scale.length} if sized else {}
        model = import_package("timm").create_model(name, num_classes=CLASSES, **size)
        assert isinstance(model, nn.Module)
        return model

    return ZooModel(f"timm.{name}", "timm", make, images, small, bench, smooth=smooth)


_SMALL_NET, _LARGE_NET = Scale(batch=4, length=64), Scale(batch=2, length=64)
_CONFIGURED = Scale(batch=2, length=16, width=32, layers=2)
_REALISTIC = Scale(batch=4, length=128, width=384, layers=4)

# Every net has its own depth and widths, but for transformers', which are what their configuration says.
_MODELS = (
    _torchvision("resnet18", _SMALL_NET, Scale(batch=32, length=64)),
    _torchvision("resnet50", _LARGE_NET, Scale(batch=8, length=64)),
    _torchvision("densenet121", _LARGE_NET, Scale(batch=8, length=64)),
    _torchvision("mobilenet_v2", _SMALL_NET, Scale(batch=16, length=96)),
    _torchvision("convnext_tiny", _LARGE_NET, Scale(batch=8, length=64), smooth=True),
    _timm("resnet26", _LARGE_NET, Scale(batch=8, length=96)),
    _timm("efficientnet_b0", _LARGE_NET, Scale(batch=16, length=96), smooth=True),
    _timm("mobilenetv3_small_100", _SMALL_NET, Scale(batch=32, length=96)),
    _timm("regnetx_002", _SMALL_NET, Scale(batch=16, length=96)),
    _timm("convnext_atto", _LARGE_NET, Scale(batch=16, length=96), smooth=True),
    _timm("vit_tiny_patch16_224", _LARGE_NET, Scale(batch=4, length=224), smooth=True, sized=True),
    ZooModel("transformers.bert", "transformers", transformers.bert, words, _CONFIGURED, _REALISTIC, images=False),
    ZooModel("transformers.gpt2", "transformers", transformers.gpt2, words, _CONFIGURED, _REALISTIC, images=False),
    ZooModel("transformers.llama", "transformers", transformers.llama, words, _CONFIGURED, _REALISTIC, images=False),
    ZooModel(
        "transformers.vit",
        "transformers",
        transformers.vit,
        pixels,
        Scale(batch=2, length=32, width=32, layers=2),
        Scale(batch=4, length=96, width=384, layers=4),
        images=False,
    ),
)
ZOO: dict[str, ZooModel] = {model.name: model for model in _MODELS}
