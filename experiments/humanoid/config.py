"""Typed configuration of the humanoid domain; the values are in `configs/humanoid/`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from experiments.common.config import BaseConfig, InjectScopeConfig


@dataclass
class ModelConfig:
    """Actor and critics, and what resets touch in them."""

    name: str = MISSING
    scope: InjectScopeConfig = field(default_factory=InjectScopeConfig)


@dataclass
class EnvConfig:
    """Where the tasks come from: HumanoidBench's package, the environment of this project, or whichever there is."""

    backend: str = MISSING


@dataclass
class BudgetConfig:
    """The numbers of a scale. Steps are environment steps (of control, 20 ms), of which an action takes several.

    Attributes:
        steps: of each phase.
        actor_width, actor_blocks: of the actor; critic_width, critic_blocks: of each critic.
        batch_size: transitions of an update.
        learning_rate: the default of `optimizer.learning_rate`.
        buffer: transitions in the replay buffer; the last observation of an episode takes the place of one.
        random_actions: actions at random before the first update.
        log_every: steps between rows; they tell of the training episodes that ended since the last.
        eval_every: steps between evaluations; the end of a phase is always evaluated.
        eval_episodes: of an evaluation.
    """

    steps: list[int] = MISSING
    actor_width: int = MISSING
    actor_blocks: int = MISSING
    critic_width: int = MISSING
    critic_blocks: int = MISSING
    batch_size: int = MISSING
    learning_rate: float = MISSING
    buffer: int = MISSING
    random_actions: int = MISSING
    log_every: int = MISSING
    eval_every: int = MISSING
    eval_episodes: int = MISSING


@dataclass
class OptimizerConfig:
    """AdamW's learning rate and weight decay; the temperature has no decay."""

    learning_rate: float = MISSING
    weight_decay: float = MISSING


@dataclass
class SacConfig:
    """What SimBa's SAC is beyond its networks.

    Attributes:
        action_repeat: environment steps an action takes.
        replay_ratio: updates an action.
        discount: of future rewards, an action.
        temperature: at first; learned.
        target_entropy: for each dimension of the action.
        tau: share of the way that the target critics follow in an update.
    """

    action_repeat: int = MISSING
    replay_ratio: float = MISSING
    discount: float = MISSING
    temperature: float = MISSING
    target_entropy: float = MISSING
    tau: float = MISSING


@dataclass
class HumanoidConfig(BaseConfig):
    """The root."""

    task: str = "h1-walk"
    record_video: bool = False
    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sac: SacConfig = field(default_factory=SacConfig)
