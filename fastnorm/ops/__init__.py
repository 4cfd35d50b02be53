"""Registration of every op in every backend's namespace, and the choice between them.

`OPS["native"].batch_norm_fwd` is the op overload of one backend; `resolve` says which backend serves a call.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from fastnorm.eager import IMPLEMENTATIONS as EAGER
from fastnorm.ops import native, triton
from fastnorm.ops.fakes import FAKES
from fastnorm.ops.schemas import SCHEMAS

BACKENDS = ("eager", "native", "triton")
_libraries: list[torch.library.Library] = []  # a Library unregisters its ops when it is collected


def _register(backend: str) -> SimpleNamespace:
    namespace = f"fastnorm_{backend}"
    library = torch.library.Library(namespace, "DEF")
    _libraries.append(library)
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"{namespace}::{name}", FAKES[name], lib=library)
        if backend == "eager":
            library.impl(name, EAGER[name], "CompositeExplicitAutograd")
        elif backend == "triton":
            for key in ("CUDA", "CPU"):
                library.impl(name, triton.launcher(name), key)
    packet = getattr(torch.ops, namespace)
    return SimpleNamespace(**{name: getattr(packet, name).default for name in SCHEMAS})


OPS: dict[str, SimpleNamespace] = {backend: _register(backend) for backend in BACKENDS}
native.load()  # the schemas are defined: the extension adds its implementations
