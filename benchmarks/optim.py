"""Measures one optimizer case: whole steps of each candidate on the same parameters, each checked first.

What changes in training changes here: lr at every step, and with the count of steps the bias correction.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import DTYPES
from benchmarks.floors import make_floors
from benchmarks.launch_count import launched_kernels
from benchmarks.measure import Row, brief, row, timed_row
from benchmarks.optim_cases import OptimCase
from benchmarks.peers import NATIVE
from fastnorm import optim, use_backend
from fastnorm.ops.backend import available_backends
from fastnorm.testing.compare import check
from fastnorm.testing.optim import arithmetic_of, expectation
from fastnorm.timing import HostClock, Plan, Run, interleave, make_clock

SAMPLES = 4096  # elements of each parameter that float64 follows: a step is elementwise
SCALE, MAX_NORM = 1024.0, 1.0
CHECKED_STEPS = 2
COMPILED = ("1000x64", "50m")  # lists with a target against torch.compile, which takes a minute for a long one


class Problem:
    """Parameters with gradients, and what some of their elements are after two steps."""

    def __init__(self, case: OptimCase) -> None:
        generator = torch.Generator().manual_seed(0)
        dtype = DTYPES[case.dtype]
        self.case = case
        self.params = [
            torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype).to(case.device))
            for shape in case.shapes
        ]
        scale = SCALE if case.spec.clip else 1.0
        for p in self.params:
            p.grad = (torch.randn(p.shape, generator=generator) * scale).to(dtype).to(case.device)
        self.grads = [p.grad for p in self.params]
        self.sampled_grad = self.sample(self.grads, torch.float64)
        if case.spec.clip:
            norm = float(
                torch.stack([torch.linalg.vector_norm(g.double()) for g in self.grads if g is not None]).norm()
            )
            self.sampled_grad *= min(1.0, MAX_NORM / (norm / SCALE + 1e-6)) / SCALE

    def sample(self, tensors: list[Any], dtype: torch.dtype) -> Tensor:
        picked = [t.detach().flatten()[:: max(1, t.numel() // SAMPLES)].cpu() for t in tensors]
        return torch.cat(picked).to(dtype)

    def followed(self, before: Tensor, dtype: torch.dtype) -> Tensor:
        """The samples after the checked steps, by torch's plain loop."""
        spec = self.case.spec
        p = torch.nn.Parameter(before.to(dtype, copy=True))
        p.grad = self.sampled_grad.to(dtype)
        peer = getattr(torch.optim, spec.torch_class)([p], **spec.options, foreach=False)
        for _ in range(CHECKED_STEPS):
            peer.step()
            if self.case.dtype == "bf16" and dtype != torch.float64:
                p.data = p.data.bfloat16().to(dtype)
        return p.detach()

    def complaint(self, name: str, run: Run) -> str:
        """What is wrong with a candidate's first steps, or nothing. Ours obeys the comparison rule in fp32."""
        before = self.sample(list(self.params), torch.float64)
        for _ in range(CHECKED_STEPS):
            run()
        got, dtype = self.sample(list(self.params), DTYPES[self.case.dtype]), DTYPES[self.case.dtype]
        exact = self.followed(before, torch.float64)
        if name in ("fastnorm", NATIVE) and self.case.dtype == "fp32":
            peer = self.followed(before, arithmetic_of(dtype)).double()
            try:
                check(got, expectation(before, exact, peer, dtype), "parameters")
            except AssertionError as wrong:
                return str(wrong)
            return ""
        eps = torch.finfo(dtype).eps
        error, way = float((got.double() - exact).norm()), float((exact - before).norm())
        allowed = way * eps ** (1 / 3) + float(before.norm()) * CHECKED_STEPS * eps
        return "" if error <= allowed else f"{error / allowed:.3g} times the error allowed"


def candidates(problem: Problem) -> dict[str, Callable[[], Run]]:
    """eager is what torch.optim does by default on this device; fused is its fused step.

    compile, on a GPU: the default step as torch.compile makes it, lr in a tensor so that it is compiled once.
    """
    case, spec = problem.case, problem.case.spec
    options = dict(spec.options)

    def groups() -> list[Any]:
        return [{"params": [p]} for p in problem.params] if case.parameters == "400groups" else list(problem.params)

    def theirs(**more: Any) -> Run:
        return stepping(getattr(torch.optim, spec.torch_class)(groups(), **options, **more), problem)

    found: dict[str, Callable[[], Run]] = {"fastnorm": lambda: ours(problem, groups()), "eager": theirs}
    if case.device == "cuda" and "native" in available_backends("cuda", "optim")[1:]:
        found[NATIVE] = lambda: ours(problem, groups(), "native")
    found["foreach"] = lambda: theirs(foreach=True)
    if spec.torch_class != "RMSprop":
        found["fused"] = lambda: theirs(fused=True)
    if case.device == "cuda" and case.parameters in COMPILED and not spec.clip:
        found["compile"] = lambda: compiled(getattr(torch.optim, spec.torch_class), groups(), options)
    return found


def compiled(kind: type[torch.optim.Optimizer], groups: list[Any], options: dict[str, Any]) -> Run:
    optimizer: Any = kind(groups, **{**options, "lr": torch.tensor(options["lr"])})
    return with_schedule(optimizer, torch.compile(lambda: optimizer.step()))


def ours(problem: Problem, groups: list[Any], backend: str = "auto") -> Run:
    spec = problem.case.spec
    more = {"max_norm": MAX_NORM} if spec.clip else {}
    optimizer: Any = getattr(optim, spec.torch_class)(groups, **spec.options, **more)
    if spec.clip:
        optimizer.grad_scale = torch.tensor(SCALE, device=problem.case.device)

    def step() -> None:
        with use_backend(backend):
            optimizer.step()

    return with_schedule(optimizer, None if backend == "auto" else step)


def stepping(optimizer: torch.optim.Optimizer, problem: Problem) -> Run:
    """A peer's step; with clipping as a training loop writes it, on gradients that come scaled every time."""
    step = with_schedule(optimizer)
    if not problem.case.spec.clip:
        return step
    device = problem.case.device
    found_inf, inverse = torch.zeros(1, device=device), torch.full((1,), 1 / SCALE, device=device)
    grads = [g for g in problem.grads if g is not None]

    def run() -> None:
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found_inf, inverse)
        if not found_inf.item():
            torch.nn.utils.clip_grad_norm_(problem.params, MAX_NORM)
            step()
        inverse.fill_(1.0)  # what is unscaled and clipped in place stays so: ever the same gradients

    return run


def with_schedule(optimizer: torch.optim.Optimizer, step: Run | None = None) -> Run:
    """A step whose lr is never the last one's, by less than the check can see."""
    step = step or optimizer.step
    rates = [(group, group["lr"]) for group in optimizer.param_groups]
    factors = itertools.cycle((1.0, 1.0, 1.0 + 1e-7, 1.0 - 1e-7))

    def run() -> None:
        factor = next(factors)
        for group, lr in rates:
            group["lr"] = lr * factor
        step()

    return run


def measure_optim(case: OptimCase, plan: Plan, *, threads: int) -> list[Row]:
    """One row a candidate and a floor, as `measure` gives."""
    problem = Problem(case)
    runs: dict[str, Run] = {}
    rows: list[Row] = []
    for name, make in candidates(problem).items():
        saved = copy.deepcopy([g for g in problem.grads if g is not None]) if case.spec.clip else []
        try:
            run = make()
            complaint = problem.complaint(name, run)
        except Exception as error:  # a peer may refuse a case: say so in its row, go on with the others
            rows.append(row(case, name, threads, status="ERROR", message=brief(error)))
            continue
        finally:
            for grad, old in zip(problem.grads, saved, strict=False):
                assert grad is not None
                grad.copy_(old)
        if complaint:
            rows.append(row(case, name, threads, status="FAIL", message=complaint))
        else:
            runs[name] = run
    runs |= make_floors(case)
    called = case.direction == "call"
    counts = {name: {"launches": len(launched_kernels(run))} for name, run in runs.items()} if called else {}
    timings = interleave(runs, HostClock() if called else make_clock(case.device, threads), plan)
    return rows + [timed_row(case, name, threads, one) | counts.get(name, {}) for name, one in timings.items()]
