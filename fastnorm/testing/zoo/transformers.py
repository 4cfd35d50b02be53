"""Hugging Face's models, made from configurations: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fastnorm.testing.zoo.packages import import_package
from fastnorm.testing.zoo.table import CLASSES, WORDS, Scale

HEADS = 4


def bert(scale: Scale) -> nn.Module:
    return _made("Bert", "ForSequenceClassification", vocab_size=WORDS, num_labels=CLASSES, **_sizes(scale))


def vit(scale: Scale) -> nn.Module:
    images = {"image_size": scale.length, "patch_size": 8}
    return _made("ViT", "ForImageClassification", num_labels=CLASSES, **images, **_sizes(scale))


def llama(scale: Scale) -> nn.Module:
    return _made("Llama", "ForCausalLM", vocab_size=WORDS, use_cache=False, **_sizes(scale))


def gpt2(scale: Scale) -> nn.Module:
    sizes = {"n_embd": scale.width, "n_layer": scale.layers, "n_head": HEADS}
    return _made("GPT2", "LMHeadModel", vocab_size=WORDS, use_cache=False, bos_token_id=0, eos_token_id=0, **sizes)


def _sizes(scale: Scale) -> dict[str, int]:
    """Llama's feed-forward is narrower than 4 widths, as it has three matrices; one number for all will do."""
    return {
        "hidden_size": scale.width,
        "intermediate_size": 4 * scale.width,
        "num_hidden_layers": scale.layers,
        "num_attention_heads": HEADS,
    }


def _made(family: str, task: str, **settings: Any) -> nn.Module:
    package = import_package("transformers")
    config = getattr(package, f"{family}Config")(**settings)
    make: Callable[..., nn.Module] = getattr(package, f"{family}{task}")
    return make(config)
