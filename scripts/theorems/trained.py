"""The network on which the theorems are measured: the head of a trained network of vision, and what it is given."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import fire
from experiments.common import checkpoint, run_files, schema
from experiments.common.config import build_scope, data_folder
from experiments.common.errors import UserError
from experiments.common.experiment import END
from experiments.vision import data, models
from experiments.vision.config import VisionConfig
from experiments.vision.datasets import DATA_SETS
from experiments.vision.domain import VISION

IMAGES = 2000
# Before FIRE, after the published number of Newton-Schulz steps, and after the exact projection.
RESETS: Mapping[str, fire.Method] = {
    "before FIRE": fire.NoReset(),
    "after FIRE, 10 steps": fire.Fire(),
    "after FIRE, exact": fire.Fire(solver="polar_express"),
}


@dataclass(frozen=True)
class Head:
    """The two linear layers at a network's end, with a ReLU between.

    Attributes:
        weights: of both, (in, out), float64, without biases.
        factors: FIRE's factors s for them.
        isometric: matrices of the whole network with eps < 1 over FIRE's factor, on the side of their neurons.
        narrow, matrices: those with no more neurons than inputs, and all; one per kernel position.
    """

    weights: list[Tensor]
    factors: list[float]
    isometric: int
    narrow: int
    matrices: int


@dataclass(frozen=True)
class Trained:
    """What the theorems are measured on.

    Attributes:
        phase: the name of the shared phase 0.
        where: benchmark, scale, seed and origin of the network, in words.
        Z: inputs of the head before FIRE, (images, in), float64.
        labels: (images,).
        heads: by the words of RESETS.
    """

    phase: str
    where: str
    Z: Tensor
    labels: Tensor
    heads: dict[str, Head]


def phase_of(folder: Path | None) -> Path:
    """The shared phase 0 that a run has continued from, or that `folder` is; None: the newest of vision in outputs/.

    Raises:
        UserError: there is none.
    """
    if folder is None:
        phases = [path.parent for path in Path("outputs/phases").glob(f"*/kept-{END}-*.pt")]
        phases = [path for path in phases if "benchmark" in run_files.configuration(path)]
        if not phases:
            raise UserError("no phase 0 of vision in outputs/phases; python -m experiments.vision trains one")
        return max(phases, key=lambda path: checkpoint.kept(path)[END].stat().st_mtime_ns)
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} is not the directory of a run")
    if "benchmark" not in run_files.configuration(folder):
        raise UserError(f"{folder} is not a run of vision")
    folder = folder.absolute()
    if run_files.is_shared_phase(folder):
        return folder
    first = schema.identity(VisionConfig, run_files.description(folder)["values"], phase_0=True)
    phase = folder.parents[2] / "phases" / schema.digest({"domain": VISION.name, **first})[:16]
    if not phase.exists():
        raise UserError(f"{folder} has no shared phase 0: there is no {phase}")
    return phase


@torch.no_grad()
def load(phase: Path) -> Trained:
    """The network at the end of a shared phase 0, before and after FIRE, and images of its data set.

    Raises:
        UserError: no such checkpoint, a damaged one, or a network that does not end in Linear, ReLU, Linear.
    """
    cfg, info = run_files.configuration(phase, VisionConfig), run_files.description(phase)
    schema.check(VisionConfig, cfg)
    VISION.check(cfg)
    path, content = checkpoint.read_kept(phase, END)
    data_set = DATA_SETS[cfg.data.name]
    network = models.build(cfg.model.name, data_set.classes, data_set.shape, cfg.budget.width, cfg.seed)
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        network.load_state_dict(content["state"]["model"])
    except RuntimeError as error:
        raise UserError(f"{path} is of another network: {str(error).splitlines()[0]}") from error
    first, second = ends(network)
    images, _ = data.load(data_set, data_folder(cfg), *data_set.used(cfg.budget), cfg.seed)
    batch, labels = images.batch(slice(0, IMAGES))
    inputs: list[Tensor] = []
    hook = network.get_submodule(first).register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    network.eval()(batch)
    hook.remove()
    heads = {}
    for words, method in RESETS.items():
        changed = copy.deepcopy(network)
        try:
            method.reset(changed, initial, build_scope(cfg.model.scope))
        except (TypeError, ValueError) as error:
            raise UserError(f"model.scope of {phase}: {error}") from error
        heads[words] = head(changed, first, second)
    where = (
        f"that of {VISION.benchmark(cfg)}, scale={cfg.scale}, width {cfg.budget.width}, seed {cfg.seed}, at the end of "
        f"phase 0 (commit {info['git']}, {info['machine']})"
    )
    return Trained(phase.name, where, inputs[0].double(), labels, heads)


def ends(network: nn.Module) -> tuple[str, str]:
    """The names of the last two linear layers.

    Raises:
        UserError: a network that does not end in Linear, ReLU, Linear.
    """
    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())][-3:]
    if [type(module) for _, module in leaves] != [nn.Linear, nn.ReLU, nn.Linear]:
        raise UserError(
            f"{type(network).__name__} does not end in Linear, ReLU, Linear, on which theorems are measured"
        )
    return leaves[0][0], leaves[2][0]


def head(network: nn.Module, *names: str) -> Head:
    """The layers with these names, and to how many matrices of the network Theorems 3 and 4 apply."""
    matrices, _ = fire.weight_matrices(network)
    scales = {matrix.name: matrix.scale for matrix in matrices}
    views = [(matrix.view, matrix.scale) for matrix in matrices]
    narrow = [(view, scale) for view, scale in views if view.shape[-2] <= view.shape[-1]]
    count = lambda of: sum(view[..., 0, 0].numel() for view, _ in of)  # noqa: E731
    return Head(
        weights=[network.get_submodule(name).weight.detach().double().T for name in names],  # type: ignore[operator]
        factors=[scales[f"{name}.weight"] for name in names],
        isometric=sum(int((fire.metrics.dfi(view, scale) < 1).sum()) for view, scale in narrow),
        narrow=count(narrow),
        matrices=count(views),
    )
