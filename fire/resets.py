"""FIRE, and the methods that it is compared with at a boundary: resets and controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .checks import check_number
from .gram import compute_dtype
from .matrices import WeightMatrix, storage_key, unwrap, weight_matrices
from .methods import Method, register, state_of
from .polar import check_solver
from .projection import Target, project
from .ranks import await_ranks
from .report import Recorder, ResetReport
from .scope import Scope


@torch.no_grad()
def fire_(
    model: nn.Module,
    *,
    solver: str = "newton_schulz",
    steps: int = 10,
    tol: float = 1e-6,
    norm: str = "fire",
    interpolation: float = 1.0,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    fused: Mapping[str, Sequence[int]] | None = None,
    layouts: Mapping[str, str] | None = None,
    frozen: bool = False,
) -> ResetReport:
    """Replace every weight matrix W of `model` by its nearest isometry times sqrt(out / in), in place.

    A convolution's (out, in) matrix at each of its kernel positions is projected by itself and divided by their number
    (FIRE, section 3 and the authors' code). Biases, normalisation layers and frozen state such as running statistics
    stay as they are. Memory addresses do not change.

    Args:
        model: any module; `fire.matrices` lists which of its tensors count.
        solver, steps, tol: how the polar factor is computed, as in `fire.polar`.
        norm: Frobenius norm that each matrix gets: `fire`, with that factor, or its `own` from before.
        interpolation: share of the way from W to there, in [0, 1].
        include, exclude: glob patterns over module names, e.g. ["*.to_q", "*.to_k"]; None includes everything.
        fused: pattern -> row sizes of weights that stack several matrices, e.g. {"*.c_attn": [768, 768, 768]}.
        layouts: pattern over parameter names -> where the matrices lie, e.g. {"*.kernel": "position in out"}.
        frozen: whether weights whose `requires_grad` is False are projected too.

    Returns:
        What changed, matrix by matrix, with SFE and DfI; what share of the model that is; zero matrices, tensors that
        were left out and, where the solver must look for them (not Newton-Schulz with up to 16 steps), rank-deficient
        matrices by name.

    Raises:
        ValueError: arguments out of range, a pattern that matches nothing, a model in which nothing can be projected
            (batch normalisation alone), or a weight with a non-finite entry; the model has not changed then.
        TypeError: `model` is not a module, a list of patterns is a string, or another wrong type.
        RuntimeError: `model` is DistributedDataParallel, and not all of its ranks have made the call.
    """
    target = Target(norm=norm, interpolation=interpolation)
    matrices, skipped = weight_matrices(
        model, include=include, exclude=exclude, fused=fused, layouts=layouts, frozen=frozen
    )
    if not matrices:
        raise ValueError(nothing_to_project(model, skipped))
    await_ranks(model)
    recorder = Recorder("fire", matrices, skipped, model=unwrap(model))
    project(recorder, matrices, solver, steps, tol, target)
    return recorder.report()


def nothing_to_project(model: nn.Module, skipped: Mapping[str, str]) -> str:
    """The message for a model in which nothing can be projected."""
    why = (
        "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        or "all are excluded, or no tensor has two dimensions"
    )
    return f"{type(unwrap(model)).__name__} has no weight that FIRE can project: {why}"


@register("full_reset")
@dataclass
class FullReset(Method):
    """All parameters and buffers back to their initial values: perfect plasticity, nothing kept."""

    def change(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, recorder: Recorder) -> None:
        for tensor, names in state_of(model):
            recorder.write_tensor(tensor, initial[names[0]])


@register("shrink_perturb")
@dataclass
class ShrinkPerturb(Method):
    """Shrink and perturb (Ash and Adams 2020): every parameter moves towards its *stored* initial value, as in the
    paper's code, which draws no fresh noise. Buffers stay.

    Attributes:
        coefficient: share of the way moved, in [0, 1]: 0 changes nothing, 1 resets all parameters.
    """

    coefficient: float

    def __post_init__(self) -> None:
        check_number("coefficient", self.coefficient, 0, 1)

    def change(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, recorder: Recorder) -> None:
        _reset_modules(model, initial, scope, recorder)
        for parameter, names in state_of(model):
            if isinstance(parameter, nn.Parameter) and not scope.resets(names):
                start = initial[names[0]].to(parameter.device, compute_dtype(parameter.dtype))
                recorder.write_tensor(parameter, torch.lerp(parameter.to(start.dtype), start, self.coefficient))


@dataclass
class Projection(Method):
    """What FIRE and its controls share: every weight matrix in scope is moved to a `Target`, the scope's `reset` to
    initial values.

    Attributes:
        solver, steps, tol: as in `fire.polar`.
    """

    solver: str = "newton_schulz"
    steps: int = 10
    tol: float = 1e-6

    def __post_init__(self) -> None:
        check_solver(self.solver, self.steps, self.tol, torch.float64)  # the model's dtype may forbid a small tol
        self.target()

    def check(self, model: nn.Module, scope: Scope) -> None:
        """Raise ValueError where nothing would be projected or reset, too."""
        matrices, skipped = scope.check(model)
        if not matrices and not scope.reset:
            raise ValueError(nothing_to_project(model, skipped))

    def target(self) -> Target:
        """Where each matrix goes."""
        return Target()

    def moves(self, matrix: WeightMatrix) -> bool:
        """Whether it is moved; by default each is."""
        return True

    def change(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, recorder: Recorder) -> None:
        matrices, _ = scope.matrices(model)
        reset = {storage_key(tensor) for tensor, names in state_of(model) if scope.resets(names)}
        projected = [m for m in matrices if self.moves(m) and storage_key(m.parameter) not in reset]
        project(recorder, projected, self.solver, self.steps, self.tol, self.target())
        _reset_modules(model, initial, scope, recorder)


@register("fire")
@dataclass
class Fire(Projection):
    """FIRE: every weight matrix in scope to its nearest isometry (`fire_`).

    Attributes:
        norm, interpolation: as in `fire_`; the defaults are the paper's.
    """

    norm: str = "fire"
    interpolation: float = 1.0

    def target(self) -> Target:
        return Target(norm=self.norm, interpolation=self.interpolation)


@register("rescale")
@dataclass
class Rescale(Projection):
    """A control: every weight matrix keeps its direction, W / ||W||_F, and gets the Frobenius norm that FIRE would give
    it. Where this does as well as FIRE it is the norm that helps, not the isometry."""

    def target(self) -> Target:
        return Target(direction="own")


@register("rescale_convolution")
@dataclass
class RescaleConvolution(Rescale):
    """A control: each convolution (each group of one) is multiplied by one factor, so that its Frobenius norm is what
    FIRE would give it; other weights stay. Where batch norm follows each convolution, the network computes what it did
    before, once the running statistics are estimated again. So what this gains is no change of the function."""

    def check(self, model: nn.Module, scope: Scope) -> None:
        """Raise ValueError for a model without a convolution in scope, too."""
        super().check(model, scope)
        if not any(map(self.moves, scope.matrices(model)[0])):
            raise ValueError(f"rescale_convolution finds no convolution in {type(unwrap(model)).__name__}")

    def target(self) -> Target:
        return Target(direction="own", per="convolution")

    def moves(self, matrix: WeightMatrix) -> bool:
        return bool(matrix.kernel)


def _reset_modules(model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, recorder: Recorder) -> None:
    for tensor, names in state_of(model):
        if scope.resets(names):
            recorder.write_tensor(tensor, initial[names[0]])
