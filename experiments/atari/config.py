"""Typed configuration of the Atari domain; the values are in `configs/atari/`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from experiments.common.config import BaseConfig, InjectScopeConfig


@dataclass
class ModelConfig:
    """The Q-network, and what resets touch in it."""

    name: str = MISSING
    scope: InjectScopeConfig = field(default_factory=InjectScopeConfig)


@dataclass
class BudgetConfig:
    """The numbers of a scale. Steps are agent steps, of all environments together: an action repeated for 4 frames.

    Attributes:
        steps: of each phase.
        width: channels of the first convolution; hidden: hidden units.
        buffer: transitions in the replay buffer.
        learning_starts: steps before the first update.
        replay_ratio: updates a step, the default of the key of that name.
        target_every: steps between updates of the target network.
        log_every: steps between rows; they tell of the training episodes that ended since the last.
        eval_every: steps between evaluations; the end of a phase is always evaluated.
        eval_steps: steps of an evaluation; episodes begun in them are played to their end.
        restart_every: steps between fresh starts of the environments, which truncate their episodes: what a run that
            goes on from a checkpoint has to play again, at most.
    """

    steps: list[int] = MISSING
    width: int = MISSING
    hidden: int = MISSING
    buffer: int = MISSING
    learning_starts: int = MISSING
    replay_ratio: float = MISSING
    target_every: int = MISSING
    log_every: int = MISSING
    eval_every: int = MISSING
    eval_steps: int = MISSING
    restart_every: int = MISSING


@dataclass
class OptimizerConfig:
    """Adam's learning rate and epsilon."""

    learning_rate: float = MISSING
    eps: float = MISSING


@dataclass
class DqnConfig:
    """What the paper's DQN is beyond its network.

    Attributes:
        environments: stepped together.
        batch_size: transitions an update.
        discount: of future rewards.
        epsilon: probability of a random action, at first and after the decay.
        exploration_fraction: share of the whole run over which epsilon falls linearly.
        eval_epsilon: in evaluations.
    """

    environments: int = MISSING
    batch_size: int = MISSING
    discount: float = MISSING
    epsilon: list[float] = MISSING
    exploration_fraction: float = MISSING
    eval_epsilon: float = MISSING


@dataclass
class AtariConfig(BaseConfig):
    """The root."""

    game: str = "asterix"
    replay_ratio: float = MISSING
    record_video: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    dqn: DqnConfig = field(default_factory=DqnConfig)
