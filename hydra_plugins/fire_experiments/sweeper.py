"""How a sweep becomes jobs: `hydra/sweeper=recipe`, the default of all domains."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from experiments.common.errors import Interrupted, UserError

logger = logging.getLogger("fire")


class RecipeSweeper(Sweeper):
    """All combinations of `params`, as Hydra's own sweeper has them, each with every one of `sweeps`.

    `sweeps` is for methods whose settings differ, which no single product can hold:

        params: {seed: "0,1,2"}
        sweeps:
          - {method: "none,full_reset"}
          - {method: fire, method.steps: "5,10,20"}

    The command line overrides both: values given there take the place of the recipe's, those of a method's setting in
    the sweeps that name it, and of `method` choose among its sweeps; a method that none of them names is run beside
    them. Each job is run once, however often it is named.
    """

    def __init__(self, params: Mapping[str, Any] | None = None, sweeps: Sequence[Mapping[str, Any]] = ()) -> None:
        self.params, self.sweeps = dict(params or {}), [dict(sweep) for sweep in sweeps]
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config, self._task = hydra_context, config, task_function
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs; what they return is left in the task's `outcomes`."""
        assert self.hydra_context is not None
        assert self.launcher is not None
        jobs = expand(self.hydra_context.config_loader, self.params, self.sweeps, arguments)
        self.validate_batch_is_legal(jobs)
        logs = self.config.hydra.launcher.get("submitit_folder", "").removesuffix("/%j")  # type: ignore[union-attr]
        if logs:
            logger.info("%d jobs are handed over; what they print is in %s/<number>", len(jobs), logs)
        told = [word for word in dict.fromkeys(itertools.chain(*jobs)) if any(word not in job for job in jobs)]
        names = [" ".join(word for word in job if word in told) for job in jobs]
        task: Any = self._task
        ended: list[dict[str, Any]] = []
        try:
            returned = self.launcher.launch(jobs, initial_job_idx=0)
            ended = [result.return_value for result in returned]
        except (Interrupted, KeyboardInterrupt):
            # What has ended until now, in which order it may be, and what has not.
            known = {outcome.get("number", place): outcome for place, outcome in enumerate(task.outcomes)}
            missing = {"run": "", "status": "not finished", "result": "", "minutes": "", "path": ""}
            ended = [known.get(number, missing) for number in range(len(jobs))]
            raise
        except Exception as error:
            if not logs:
                raise
            raise UserError(
                f"a job on the cluster ended without telling how ({type(error).__name__}); the others go on, and the "
                f"same command later resumes it and shows them all; what they printed is in {logs}"
            ) from error
        finally:
            task.outcomes = [
                {**outcome, "run": name or outcome["run"]} for name, outcome in zip(names, ended, strict=False)
            ]
        return [returned]


def expand(
    loader: ConfigLoader, params: Mapping[str, Any], sweeps: Sequence[Mapping[str, Any]], arguments: Sequence[str]
) -> list[list[str]]:
    """The overrides of every job of a recipe, as `RecipeSweeper` says, with `arguments` from the command line."""
    given = _choices(loader, arguments)
    outer = {**_choices(loader, [f"{key}={value}" for key, value in params.items()]), **given}
    inner = [_choices(loader, [f"{key}={value}" for key, value in sweep.items()]) for sweep in sweeps]
    chosen = given.get("method")
    fitting = []
    for sweep in inner:
        kept = {key: values if key == "method" else given.get(key, values) for key, values in sweep.items()}
        if chosen is not None and "method" in kept:
            kept["method"] = [method for method in kept["method"] if method in chosen]
        if all(kept.values()):
            fitting.append(kept)
    named = {method for sweep in fitting for method in sweep.get("method", [])}
    if others := [method for method in chosen or [] if fitting and method not in named]:
        fitting.append({"method": others})
    common = {key: values for key, values in outer.items() if not any(key in sweep for sweep in fitting)}
    inherited = [key for key in outer if key in params or not key.lstrip("+").startswith("method.")]
    rest = {key: outer[key] for key in inherited if key not in common}
    jobs: dict[tuple[str, ...], None] = {}  # an ordered set; seeds come first, so that whole comparisons finish early
    for combination in _product(common):
        for sweep in fitting or [{}]:
            jobs.update({(*combination, *own): None for own in _product({**rest, **sweep})})
    return [list(job) for job in jobs]


def _product(choices: Mapping[str, list[str]]) -> Iterator[tuple[str, ...]]:
    return itertools.product(*([f"{key}={value}" for value in values] for key, values in choices.items()))


def _choices(loader: ConfigLoader, words: Sequence[str]) -> dict[str, list[str]]:
    """The values that each key takes in some overrides; the last word on a key counts."""
    choices = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(words)):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise HydraException(f"{override.input_line}: only lists, range() and glob() can be swept over")
        values = override.sweep_string_iterator() if override.is_sweep_override() else None
        choices[override.get_key_element()] = list(values or [override.get_value_element_as_str()])
    return choices


@dataclass
class RecipeSweeperConfig:
    """Its configuration."""

    _target_: str = "hydra_plugins.fire_experiments.sweeper.RecipeSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    sweeps: list[dict[str, Any]] = field(default_factory=list)


ConfigStore.instance().store(group="hydra/sweeper", name="recipe", node=RecipeSweeperConfig, provider="fire")
