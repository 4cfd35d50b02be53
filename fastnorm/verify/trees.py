"""Tensors in nested arguments and outputs: tuples, lists, mappings (Hugging Face's ModelOutput is one), dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Batch = Tensor | tuple[Any, ...] | Mapping[str, Any]


def call_arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called with a batch: a tensor or a tuple as `model(*batch)`, a mapping as `model(**batch)`."""
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, tuple):
        return batch, {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    raise ValueError(
        f"batch must be a tensor, a tuple of arguments or a dict of keyword arguments, got {type(batch).__name__}"
    )


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting of tuples, lists and dicts with every tensor changed; other values as they are."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):  # a namedtuple takes its fields apart
        return type(tree)(*(map_tensors(value, change) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tensors(value, change) for value in tree)
    if isinstance(tree, dict):
        return {key: map_tensors(value, change) for key, value in tree.items()}
    return tree


def named_tensors(tree: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with where it stands: `output[1].logits`. What is none of the nestings above is passed over."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from named_tensors(value, f"{name}.{key}")
    elif isinstance(tree, (tuple, list)):
        for index, value in enumerate(tree):
            yield from named_tensors(value, f"{name}[{index}]")
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from named_tensors(getattr(tree, field.name), f"{name}.{field.name}")


def is_inexact(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def as_double(t: Tensor) -> Tensor:
    return t.to(torch.float64) if t.is_floating_point() else t
