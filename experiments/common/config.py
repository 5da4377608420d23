"""The configuration all domains share: typed, so that a wrong key or value fails before anything starts."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from torch import nn

import fire
from experiments.common.errors import UserError
from experiments.common.fetch import DEFAULT_DATA


@dataclass
class UnitsConfig:
    """The layers around one layer of units: patterns over module names, with `*` for the same text in all.

    Attributes:
        incoming: the layer whose output rows make the units.
        outgoing: the layers whose input columns read them.
        norm: the normalisation between `incoming` and the units.
    """

    incoming: str
    outgoing: list[str]
    norm: str | None = None


@dataclass
class ScopeConfig:
    """Which modules of a model a reset concerns (`fire.Scope`): glob patterns over module names."""

    include: list[str] | None = None
    exclude: list[str] | None = None
    reset: list[str] = field(default_factory=list)
    fused: dict[str, list[int]] = field(default_factory=dict)
    units: dict[str, UnitsConfig] = field(default_factory=dict)


@dataclass
class InjectScopeConfig(ScopeConfig):
    """The same, of a network whose heads are named, so that plasticity injection can be used."""

    inject: list[str] = field(default_factory=list)


@dataclass
class WandbConfig:
    """Weights & Biases. auto: online where a key is configured, else offline; WANDB_* variables are honoured."""

    mode: str = "auto"
    project: str = "fire"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class BaseConfig:
    """Keys of every domain."""

    seed: int = 0
    scale: str = MISSING
    jobs: int = 1
    method: Any = MISSING
    optimizer_at_boundary: str = "reset"
    device: str = "auto"
    precision: str = "fp32"
    compile: str = "auto"
    threads: int = 0
    sharpness: int = 0
    until: str = "end"
    phase_cache: bool = True
    overwrite: bool = False
    checkpoint_seconds: float = 60.0
    data_dir: str = MISSING
    outputs_dir: str = "outputs"
    debug: bool = False
    wandb: WandbConfig = field(default_factory=WandbConfig)


CONFIGS = Path(__file__).parents[2] / "configs"

# What cannot change a number of a run. Everything else is part of its identity, new keys included.
NOT_IDENTITY = (
    "scale", "jobs", "until", "phase_cache", "overwrite", "checkpoint_seconds", "data_dir", "outputs_dir", "debug",
    "wandb",
)  # fmt: skip
# What belongs to a method: in some domains one of them keeps the optimiser where the others begin it anew.
OF_METHOD = ("method", "optimizer_at_boundary")
CHOICES = {
    "optimizer_at_boundary": ("keep", "reset"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("fp32", "tf32", "bf16", "fp16"),
    "compile": ("auto", "true", "false", "graphs"),
    "until": ("end", "phase0"),
}
HIGHEST = {"seed": 2**32 - 1, "jobs": 1024, "threads": 1024, "checkpoint_seconds": 1e9, "sharpness": 1e9}
DEFAULT_THREADS = torch.get_num_threads()  # read before a job of a sweep changes it
WANDB_MODES = ("auto", "online", "offline", "disabled")


def register_schemas(config: type[BaseConfig]) -> None:
    """Make a domain's root schema and those of all reset methods known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="schema", node=config)
    for name, method in fire.METHODS.items():
        # A method's dataclass is its schema; only the name, which chooses it, is added.
        node = make_dataclass(method.__name__ + "Config", [("name", str, field(default=name))], bases=(method,))
        store.store(group="schema/method", name=name, node=node)


def compose_domain(domain: str, schema: type[BaseConfig], overrides: Iterable[str]) -> DictConfig:
    """The configuration that `python -m experiments.<domain> <overrides>` has."""
    register_schemas(schema)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS / domain), version_base="1.3"):
        return compose("config", [*overrides])


def sweep_jobs(domain: str, schema: type[BaseConfig], recipe: str, overrides: Iterable[str]) -> list[list[str]]:
    """The overrides of all jobs of `python -m experiments.<domain> experiment=<recipe> <overrides>`."""
    register_schemas(schema)
    GlobalHydra.instance().clear()
    words = [f"experiment={recipe}", *overrides]
    with initialize_config_dir(str(CONFIGS / domain), version_base="1.3"):
        from hydra_plugins.fire_experiments.sweeper import expand  # which needs Hydra's own plugins first

        sweeper = compose("config", words[:1], return_hydra_config=True).hydra.sweeper
        return expand(GlobalHydra.instance().config_loader(), sweeper.params, sweeper.sweeps, words)


def compose_sweep(domain: str, schema: type[BaseConfig], recipe: str, overrides: Iterable[str]) -> list[DictConfig]:
    """The configurations of those jobs."""
    return [compose_domain(domain, schema, job) for job in sweep_jobs(domain, schema, recipe, overrides)]


def recipes(domain: str) -> list[str]:
    """The names of a domain's recipes, those it shares with others last."""
    return [path.stem for root in (domain, "shared") for path in sorted((CONFIGS / root / "experiment").glob("*.yaml"))]


def check_choices(cfg: DictConfig) -> None:
    """Raise UserError for a value outside its choices."""
    for key, valid in CHOICES.items():
        # `compile=true` arrives as the word "True"; nothing else may be written in another way.
        value = cfg[key].lower() if key == "compile" else cfg[key]
        if value not in valid:
            raise UserError(f"{key}={cfg[key]} is unknown; valid: {', '.join(valid)}")
    if cfg.wandb.mode not in WANDB_MODES:
        raise UserError(f"wandb.mode={cfg.wandb.mode} is unknown; valid: {', '.join(WANDB_MODES)}")
    if cfg.until == "phase0" and not cfg.phase_cache:
        raise UserError(
            "until=phase0 trains the shared phase, which phase_cache=false does without; choose one of them"
        )
    for key in HIGHEST:
        check_range(key, cfg[key])


def check_range(key: str, value: float) -> None:
    """Raise UserError for a negative value of one of HIGHEST's keys, or one above."""
    if not 0 <= value <= HIGHEST[key]:
        raise UserError(f"{key}={value} must lie in [0, {HIGHEST[key]:.0f}]")


def build_method(cfg: DictConfig) -> fire.Method:
    """The reset method of a run.

    Raises:
        UserError: a setting out of range.
    """
    settings = dict(OmegaConf.to_container(cfg.method, resolve=True))  # type: ignore[arg-type]
    name = str(settings.pop("name"))
    try:
        return fire.build(name, **settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"method={name}: {error}") from error


def optimizer_at_boundary(values: Any) -> str:
    """What a run with these values does with the optimiser: some methods make no sense without a new one."""
    method = fire.METHODS.get(values["method"]["name"], fire.Method)
    return "reset" if method.resets_optimizer else values["optimizer_at_boundary"]


def method_words(cfg: DictConfig) -> str:
    """The method as the command line has chosen it, with the settings that were given there."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return " ".join([f"method={cfg.method.name}", *(word for word in given if word.startswith("method."))])


def build_scope(cfg: DictConfig) -> fire.Scope:
    """The reset scope of a run's model, from its `scope`."""
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    del values["units"]  # which `fire.Scope` does not have yet
    return fire.Scope(**values)


@dataclass(frozen=True)
class Runtime:
    """How the numbers are computed; part of a run's identity.

    Attributes:
        device: cpu or cuda.
        precision: of the training; fp32, tf32, or autocast to bf16 or fp16, which needs loss scaling.
        compile: false, true (torch.compile), or graphs: CUDA graphs. Language takes those that torch.compile makes; in
            the other domains one graph is a whole step, in vision with its network compiled.
        threads: of PyTorch on the CPU; 0 on CUDA, where it changes nothing.
    """

    device: str
    precision: str
    compile: str
    threads: int

    def compiled(self, model: nn.Module) -> Callable[..., Any]:
        """`model` as it is to be called in training."""
        if self.compile == "false":
            return model
        return torch.compile(model, mode="reduce-overhead" if self.compile == "graphs" else None)

    @property
    def autocast(self) -> torch.autocast:
        """Context of the forward pass.

        Within a context PyTorch keeps the weights it has cast. A captured graph must cast them anew whenever it is
        replayed, so nothing is kept where graphs are captured.
        """
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        enabled, kept = self.precision in ("bf16", "fp16"), self.compile != "graphs"
        return torch.autocast(self.device, dtype=dtype, enabled=enabled, cache_enabled=kept)


def resolve_runtime(cfg: DictConfig, compile_on_cuda: str = "true") -> Runtime:
    """Choose the device and set PyTorch up for it; `compile_on_cuda` is what compile=auto means there.

    Raises:
        UserError: a device or precision this machine does not have.
    """
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but PyTorch sees no CUDA device here; use device=cpu or device=auto")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    if cfg.precision in ("tf32", "fp16") and device != "cuda":
        raise UserError(f"precision={cfg.precision} needs CUDA; use fp32 or bf16 on the CPU")
    torch.set_num_threads(cfg.threads or DEFAULT_THREADS)
    torch.set_float32_matmul_precision("high" if cfg.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = cfg.precision == "tf32"
    compiled = cfg.compile.lower()
    if compiled == "auto":
        compiled = compile_on_cuda if device == "cuda" else "false"
    if compiled == "graphs" and device != "cuda":
        raise UserError("compile=graphs needs CUDA; use true or false on the CPU")
    return Runtime(device, cfg.precision, compiled, torch.get_num_threads() if device == "cpu" else 0)


def identity_values(cfg: DictConfig, runtime: Runtime, phase_version: int) -> dict[str, Any]:
    """Everything that can change a number of the run."""
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    for key in NOT_IDENTITY:
        del values[key]
    values.update({item.name: getattr(runtime, item.name) for item in fields(runtime)})
    values["phase_version"] = phase_version
    return values


def digest(values: dict[str, Any]) -> str:
    """Identity as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def data_folder(cfg: DictConfig) -> Path:
    """The user's data folder."""
    return Path(os.path.expandvars(cfg.data_dir or DEFAULT_DATA)).expanduser()
