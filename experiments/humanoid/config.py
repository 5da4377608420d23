"""Typed configuration of the humanoid domain; the values are in `configs/humanoid/`."""

from dataclasses import dataclass, field

from experiments.common.config import BaseConfig, ModelConfig
from experiments.common.schema import COUNT, HUGE, NOTHING, setting
from experiments.humanoid.tasks import MAX_STEPS


@dataclass
class EnvConfig:
    """Where the tasks come from.

    Attributes:
        backend: HumanoidBench's package or this project's environment (native); auto: the package where it can be
            imported. What it stands for is part of a run's identity, with its version.
    """

    backend: str = setting(choices=("auto", "native", "humanoid_bench"))


@dataclass
class BudgetConfig:
    """The numbers of a scale. Steps are environment steps (of control, 20 ms), of which an action takes several.

    Attributes:
        steps: of each phase.
        actor_width, actor_blocks: of the actor.
        critic_width, critic_blocks: of each critic.
        batch_size: transitions of an update.
        learning_rate: the default of `optimizer.learning_rate`.
        buffer: transitions in the replay buffer; the last observation of an episode takes the place of one.
        random_actions: actions at random before the first update.
        log_every: steps between rows, which report the training episodes that ended since the last.
        eval_every: steps between evaluations; the end of a phase is always evaluated.
        eval_episodes: of an evaluation.
    """

    steps: list[int] = setting(low=1, high=COUNT, length=2)
    actor_width: int = setting(low=1, high=65_536)
    actor_blocks: int = setting(low=1, high=1000)
    critic_width: int = setting(low=1, high=65_536)
    critic_blocks: int = setting(low=1, high=1000)
    batch_size: int = setting(low=1, high=1e6)
    learning_rate: float = setting(above=0, high=HUGE)
    buffer: int = setting(low=2, high=COUNT)
    random_actions: int = setting(low=2, high=COUNT)
    log_every: int = setting(low=1, high=COUNT)
    eval_every: int = setting(low=1, high=COUNT)
    eval_episodes: int = setting(low=1, high=1e6)


@dataclass
class OptimizerConfig:
    """AdamW.

    Attributes:
        learning_rate: of all networks and of the temperature.
        weight_decay: of the networks.
    """

    learning_rate: float = setting(above=0, high=HUGE)
    weight_decay: float = setting(low=0, high=1000)


@dataclass
class SacConfig:
    """What SimBa's SAC is beyond its networks.

    Attributes:
        action_repeat: environment steps an action takes.
        replay_ratio: updates an action.
        discount: of future rewards, an action.
        temperature: at first; learned.
        target_entropy: for each dimension of the action.
        tau: share of the way that the target critics move towards the critics in an update.
    """

    action_repeat: int = setting(low=1, high=MAX_STEPS)
    replay_ratio: float = setting(above=0, high=1024)
    discount: float = setting(low=0, high=1)
    temperature: float = setting(above=0, high=1e6)
    target_entropy: float = setting(low=-1000, high=1000)
    tau: float = setting(low=0, high=1)


@dataclass
class HumanoidConfig(BaseConfig):
    """The root.

    Attributes:
        task: of HumanoidBench: h1-walk, h1-run, h1-stand, h1-balance_simple or h1-crawl.
        record_video: write an episode of the final policy, `video.mp4` in the run's directory; of a finished run too.
    """

    task: str = "h1-walk"
    record_video: bool = setting(False, decides=NOTHING)
    env: EnvConfig = field(default_factory=EnvConfig, metadata={"decides": NOTHING})
    model: ModelConfig = field(default_factory=ModelConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sac: SacConfig = field(default_factory=SacConfig)
