"""Typed configuration of the Atari domain; the values are in `configs/atari/`."""

from dataclasses import dataclass, field

from experiments.common.config import BaseConfig, ModelConfig
from experiments.common.schema import COUNT, HUGE, NOTHING, setting


@dataclass
class BudgetConfig:
    """The numbers of a scale. Steps are agent steps, of all environments together: an action repeated for 4 frames.

    Attributes:
        steps: of each phase.
        width: channels of the first convolution.
        hidden: hidden units.
        buffer: transitions in the replay buffer.
        learning_starts: steps before the first update.
        replay_ratio: updates a step, the default of the key of that name.
        target_every: steps between updates of the target network.
        log_every: steps between rows, which report the training episodes that ended since the last.
        eval_every: steps between evaluations; the end of a phase is always evaluated.
        eval_steps: steps of an evaluation; episodes begun in them are played to their end.
        restart_every: steps between new starts of the environments, which truncate their episodes: at most what a run
            that continues from a checkpoint has to play again.
    """

    steps: list[int] = setting(low=1, high=COUNT, length=2)
    width: int = setting(low=1, high=4096)
    hidden: int = setting(low=1, high=65_536)
    buffer: int = setting(low=0, high=COUNT)
    learning_starts: int = setting(low=0, high=COUNT)
    replay_ratio: float = setting(above=0, high=1024)
    target_every: int = setting(low=1, high=COUNT)
    log_every: int = setting(low=1, high=COUNT)
    eval_every: int = setting(low=1, high=COUNT)
    eval_steps: int = setting(low=1, high=COUNT)
    restart_every: int = setting(low=1, high=COUNT)


@dataclass
class EnvConfig:
    """The environments.

    Attributes:
        sticky: what is repeated with probability 0.25. frame: in each of the four frames of a step the action of the
            frame before (ALE's own, Machado et al. 2018). agent_step: in each step the whole action of the step
            before, as the authors' wrapper does; the default at scale=paper.
    """

    sticky: str = setting("frame", choices=("agent_step", "frame"))


@dataclass
class OptimizerConfig:
    """Adam.

    Attributes:
        learning_rate, eps: of Adam.
    """

    learning_rate: float = setting(above=0, high=HUGE)
    eps: float = setting(low=0, high=1)


@dataclass
class DqnConfig:
    """What the paper's DQN is beyond its network.

    Attributes:
        environments: stepped together.
        batch_size: transitions an update.
        discount: of future rewards.
        epsilon: probability of a random action, at first and after the decay.
        exploration_fraction: share of the whole run over which epsilon falls linearly.
        epsilon_decay_starts: steps before epsilon begins to fall; the authors' is budget.learning_starts, the default
            at scale=paper.
        eval_epsilon: in evaluations.
    """

    environments: int = setting(low=1, high=1024)
    batch_size: int = setting(low=1, high=65_536)
    discount: float = setting(low=0, high=1)
    epsilon: list[float] = setting(low=0, high=1, length=2)
    exploration_fraction: float = setting(low=0, high=1)
    epsilon_decay_starts: int = setting(0, low=0, high=COUNT)
    eval_epsilon: float = setting(low=0, high=1)


@dataclass
class AtariConfig(BaseConfig):
    """The root.

    Attributes:
        game: any of ALE's 108, by ALE's name or Gymnasium's (beam_rider, BeamRiderNoFrameskip-v4).
        replay_ratio: updates an agent step.
        record_video: write an episode of the final policy, `video.mp4` in the run's directory; of a finished run too.
    """

    game: str = "asterix"
    replay_ratio: float = setting(above=0, high=1024)
    record_video: bool = setting(False, decides=NOTHING)
    model: ModelConfig = field(default_factory=ModelConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    dqn: DqnConfig = field(default_factory=DqnConfig)
