"""What a domain is, in one description, and what follows from it: names, directories and identities of runs."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

import fire
from experiments.common.config import BaseConfig, outputs_folder
from experiments.common.errors import StopSignals
from experiments.common.experiment import Experiment
from experiments.common.runtime import Runtime
from experiments.common.schema import digest, identity

Prepare = Callable[[], Experiment]


@dataclass(frozen=True)
class Results:
    """How a domain's results are reported.

    Attributes:
        metric, title: the key of its rows that matters most, and the same in words.
        step, steps: the key of its rows that counts training, and the same in words.
        figure: the paper's figure.
        panels: the paper's panel (results/paper/figures.csv) for the groups' benchmarks that have one.
        paper_step: how many steps 1 on the x-axis of the paper's figure is.
        from_start: whether the curves of a benchmark are drawn from the run's start, or from the last boundary.
        apart: further metrics, each with a panel and a column: key -> (panel's title, column).
        before: metrics of phase 0 that get a panel: key -> label.
        axis: what figures name the y-axis; the title if empty.
        decimals: of the metric in tables.
        normalised: column's title, and a function of benchmark and value that puts the metric on a common scale, or
            returns None where that is not known.
        warning: what to know before reading results of any scale but the paper's.
    """

    metric: str
    title: str
    step: str
    steps: str
    figure: str
    panels: dict[str, str]
    paper_step: float = 1
    from_start: Callable[[str], bool] = lambda benchmark: False
    apart: dict[str, tuple[str, str]] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)
    axis: str = ""
    decimals: int = 3
    normalised: tuple[str, Callable[[str, float], float | None]] | None = None
    warning: str = ""


class Domain(ABC):
    """The description of a domain. Importing it needs none of the domain's packages; `experiment` may.

    Attributes:
        name: as in `python -m experiments.<name>`.
        schema: of its configuration.
        phase_version: raised by every change of what a phase computes; part of the identity of runs and phases.
        several_processes: whether torchrun may start several, which train one run together.
        compile_on_cuda: what compile=auto means on a GPU.
        results: how its results are reported.
    """

    name: ClassVar[str]
    schema: ClassVar[type[BaseConfig]]
    phase_version: ClassVar[int]
    several_processes: ClassVar[bool] = False
    compile_on_cuda: ClassVar[str] = "graphs"
    results: ClassVar[Results]

    def check(self, cfg: DictConfig) -> None:  # noqa: B027 - nothing to check
        """Raise UserError where several values do not fit together; may write a name in its canonical form. The range
        of a single value is part of the schema."""

    def open(self, cfg: DictConfig, runtime: Runtime) -> Any:  # noqa: B027 - nothing to know
        """What must be known of the data before the run has a name; given to the methods below."""

    @abstractmethod
    def benchmark(self, cfg: DictConfig) -> str:
        """What the runs are filed under, without the scale."""

    @abstractmethod
    def choices(self, cfg: DictConfig) -> list[str]:
        """The words of the command line that choose the benchmark."""

    def paper_choices(self, cfg: DictConfig) -> list[str]:
        """Those of them that choose the paper's experiment, with scale=paper."""
        return self.choices(cfg)

    @abstractmethod
    def headline(self, cfg: DictConfig, opened: Any) -> str:
        """The size of a run in words, for the first line it prints."""

    def extra_identity(self, cfg: DictConfig, opened: Any) -> dict[str, Any]:
        """What can change a number of a run beside its settings, such as versions and checksums."""
        return {}

    def extra_phase_0_identity(self, cfg: DictConfig, opened: Any) -> dict[str, Any]:
        """The part of that which can change a number of phase 0."""
        return self.extra_identity(cfg, opened)

    @abstractmethod
    def experiment(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, opened: Any) -> Experiment:
        """The experiment, at the beginning of phase 0."""

    def in_every_process(
        self, opened: Any, prepare: Prepare, carry_out: Callable[[Prepare], dict[str, Any]], stop: StopSignals
    ) -> dict[str, Any]:
        """Call `carry_out` with `prepare`; a domain that trains with several processes lets all of them take part."""
        return carry_out(prepare)

    def revisit(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, run_dir: Path) -> None:  # noqa: B027
        """What is left to do for a run that has been done before, such as a video."""


@dataclass(frozen=True)
class Job:
    """One run: what it is, where it lives and what it shares.

    Attributes:
        name: method and seed.
        choices: the words of the command line that choose its benchmark.
        identity: values that can change any number of the run.
        phase_0_identity: the part that can change a number of phase 0; equal for all methods that do not act in it.
        run_dir: its own directory, outputs/<domain>/<group>/<name>-<hash8>.
        phase_dir: where phase 0 is kept for all runs that share it.
    """

    cfg: DictConfig
    name: str
    choices: list[str]
    identity: dict[str, Any]
    phase_0_identity: dict[str, Any]
    run_dir: Path
    phase_dir: Path


def describe(domain: Domain, cfg: DictConfig, runtime: Runtime, method: fire.Method, opened: Any) -> Job:
    """Name, identity and directories of a run, and what of it phase 0 depends on."""
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    computed = asdict(runtime) | {"phase_version": domain.phase_version}
    whole = identity(domain.schema, values) | computed | domain.extra_identity(cfg, opened)
    first = identity(domain.schema, values, phase_0=True) | computed | domain.extra_phase_0_identity(cfg, opened)
    adam = whole.get("model", {}).get("scope", {}).pop("adam", None)
    if method.has_optimizer:  # a setting of the method: other runs do not depend on it, and stand beside it in reports
        whole["method"]["adam"] = adam
    if method.acts_in(0):  # phase 0 is this method's own, and its units are in the model's scope
        first |= {"method": whole["method"], "model": whole["model"]}
    name, outputs = f"{cfg.method.name}-s{cfg.seed}", outputs_folder(cfg)
    run_dir = outputs / domain.name / f"{domain.benchmark(cfg)}-{cfg.scale}" / f"{name}-{digest(whole)[:8]}"
    phase_dir = outputs / "phases" / digest({"domain": domain.name, **first})[:16]
    return Job(cfg, name, domain.choices(cfg), whole, first, run_dir, phase_dir)
