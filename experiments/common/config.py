"""The configuration all domains share: typed, so that a wrong key or value fails before anything starts."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

import fire
from experiments.common.errors import UserError
from experiments.common.fetch import DEFAULT_DATA
from experiments.common.schema import LATER_PHASES, NOTHING, setting

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass
class UnitsConfig:
    """The layers around the units of one activation (`fire.unit_layers`).

    Attributes:
        incoming, outgoing, norm: names of the layer before, of those after, and of the normalisation between.
    """

    incoming: str = MISSING
    outgoing: list[str] = MISSING
    norm: str | None = None


@dataclass
class ScopeConfig:
    """Which modules of a model a method concerns (`fire.Scope`): glob patterns over module names.

    Attributes:
        include: modules whose weight matrices FIRE projects; null: all.
        exclude: modules whose weight matrices it leaves alone.
        reset: modules that resets send to their initial weights altogether.
        inject: heads that plasticity injection puts a second one beside.
        adam: modules that muon leaves to Adam.
        units: for each activation, the layers around its units.
        fused: row sizes of weights that stack several matrices.
    """

    include: list[str] | None = setting(None, decides=LATER_PHASES)
    exclude: list[str] | None = setting(None, decides=LATER_PHASES)
    reset: list[str] = setting([], decides=LATER_PHASES)
    inject: list[str] = setting([], decides=LATER_PHASES)
    adam: list[str] = setting([], decides=LATER_PHASES)
    units: dict[str, UnitsConfig] = field(default_factory=dict, metadata={"decides": LATER_PHASES})
    fused: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """A network, and which of its modules methods concern.

    Attributes:
        name: of the network.
    """

    name: str = MISSING
    scope: ScopeConfig = field(default_factory=ScopeConfig)


@dataclass
class WandbConfig:
    """Weights & Biases.

    Attributes:
        mode: auto: online where a key is configured, else offline.
        project, entity, tags: as W&B has them; WANDB_* variables win.
    """

    mode: str = setting("auto", choices=("auto", "online", "offline", "disabled"))
    project: str = "fire"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class BaseConfig:
    """Settings of every domain.

    Attributes:
        seed: of weights, data subset and order; all methods of a seed see the same batches.
        scale: how large the run is: the name of a file in configs/<domain>/scale.
        jobs: how many jobs of a sweep run at once; 0: one for each GPU or CPU core.
        method: what is done for plasticity: the name of a file in configs/shared/method.
        optimizer_at_boundary: what becomes of the optimiser's moments at a boundary. Plasticity injection and Muon
            always reset them; in humanoid the temperature is reset too.
        device: auto: CUDA where there is one.
        precision: of the training; resets always compute in float32. fp16 is language's alone, on CUDA.
        compile: true: torch.compile. graphs, on CUDA: a whole step as CUDA graphs; in language those that torch.compile
            makes. auto: on CUDA graphs, in language true; on the CPU false.
        threads: of PyTorch on the CPU; 0: its own choice.
        sharpness: on how many samples of the upcoming data, or of the replay buffer, the largest Hessian eigenvalue of
            the loss is measured before and after the reset; 0: it is not.
        until: phase0 trains only what all methods share.
        phase_cache: whether phase 0 is shared between runs.
        overwrite: do a finished run again.
        checkpoint_seconds: between checkpoints.
        data_dir: where data are kept.
        outputs_dir: where runs are kept.
        debug: show tracebacks.
    """

    seed: int = setting(0, low=0, high=2**32 - 1)
    scale: str = setting(decides=NOTHING)
    jobs: int = setting(1, low=0, high=1024, decides=NOTHING)
    method: Any = setting(decides=LATER_PHASES)
    optimizer_at_boundary: str = setting("reset", choices=("keep", "reset"), decides=LATER_PHASES)
    device: str = setting("auto", choices=("auto", "cpu", "cuda"))
    precision: str = setting("fp32", choices=("fp32", "tf32", "bf16", "fp16"))
    compile: str = setting("auto", choices=("auto", "true", "false", "graphs"))
    threads: int = setting(0, low=0, high=1024)
    sharpness: int = setting(0, low=0, high=1e6, decides=LATER_PHASES)
    until: str = setting("end", choices=("end", "phase0"), decides=NOTHING)
    phase_cache: bool = setting(True, decides=NOTHING)
    overwrite: bool = setting(False, decides=NOTHING)
    checkpoint_seconds: float = setting(60.0, low=0, high=1e9, decides=NOTHING)
    data_dir: str = setting(decides=NOTHING)
    outputs_dir: str = setting("outputs", decides=NOTHING)
    debug: bool = setting(False, decides=NOTHING)
    wandb: WandbConfig = field(default_factory=WandbConfig, metadata={"decides": NOTHING})


def register_schemas(config: type[BaseConfig]) -> None:
    """Make a domain's root schema and those of all methods known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="schema", node=config)
    for name, method in fire.METHODS.items():
        # A method's dataclass is its schema. `kind` is the method, `name` that of its config file, which may be a
        # variant of it with other settings.
        words = [("name", str, field(default=name)), ("kind", str, field(default=name))]
        node = make_dataclass(method.__name__ + "Config", words, bases=(method,))
        store.store(group="schema/method", name=name, node=node)


def compose_domain(domain: str, schema: type[BaseConfig], overrides: Iterable[str]) -> DictConfig:
    """The configuration that `python -m experiments.<domain> <overrides>` has."""
    register_schemas(schema)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS / domain), version_base="1.3"):
        return compose("config", [*overrides])


def recipes(domain: str) -> list[str]:
    """The names of a domain's recipes, those it shares with others last."""
    paths = [path for root in (domain, "shared") for path in sorted((CONFIGS / root / "experiment").glob("*.yaml"))]
    return list(dict.fromkeys(path.stem for path in paths))


def build_method(cfg: DictConfig) -> fire.Method:
    """The method of a run; writes what it always does with the optimiser into `cfg`.

    Raises:
        UserError: a setting out of range.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg.method)):
        raise UserError(f"method={cfg.method.name} needs a value: method.{missing[0].removeprefix('method.')}=...")
    settings: Any = OmegaConf.to_container(cfg.method, resolve=True)
    name, kind = settings.pop("name"), settings.pop("kind")
    try:
        method = fire.build(kind, **settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"method={name}: {error}") from error
    if method.resets_optimizer:  # it makes no sense without a new one
        cfg.optimizer_at_boundary = "reset"
    return method


def check_names(cfg: DictConfig) -> None:
    """Raise UserError for a word of the command line by which a choice would not be what its name says."""
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    for group, chosen in hydra.runtime.choices.items():
        if OmegaConf.is_dict(section := cfg.get(group)) and section.get("name", chosen) != chosen:
            raise UserError(f"{group}.name={section.name} is not the name of the chosen file, {group}={chosen}")
    for word in hydra.overrides.task:
        if word.startswith("method.kind="):
            raise UserError(f"{word} cannot be set; choose a method with method=...")
        if word.endswith("={}"):
            raise UserError(f"{word} would change nothing: Hydra merges it into what is there")


def method_settings() -> list[str]:
    """The settings of the method that the command line gives."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [word for word in given if word.startswith(("method.", "optimizer_at_boundary="))]


def build_scope(cfg: DictConfig) -> fire.Scope:
    """The scope of a run's model, from its `scope`."""
    return fire.Scope(**OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


def expanded(path: str) -> Path:
    """A path with ~ and variables replaced, which shells do not do after `outputs_dir=`."""
    return Path(os.path.expandvars(path)).expanduser()


# Hydra makes a folder for a sweep itself.
OmegaConf.register_new_resolver("expanded", lambda path: str(expanded(path)), replace=True)


def data_folder(cfg: DictConfig) -> Path:
    """The user's data folder."""
    return expanded(cfg.data_dir or DEFAULT_DATA)


def outputs_folder(cfg: DictConfig) -> Path:
    """Where runs are kept."""
    return expanded(cfg.outputs_dir)
