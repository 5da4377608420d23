"""What happens at which step of the humanoid domain."""

from omegaconf import DictConfig

from experiments.rl import training


class Schedule(training.Schedule):
    """Steps are environment steps.

    An action counts as `action_repeat` of them, also where it ends an episode earlier, as SimBa's code counts.
    """

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg.budget)
        self.repeat, self.batch_size = cfg.sac.action_repeat, cfg.budget.batch_size
        self._random, self._ratio = cfg.budget.random_actions, cfg.sac.replay_ratio
        self.most_updates = int(self._ratio) + 1

    def explores(self, step: int) -> bool:
        """Whether the action at `step` is a random one."""
        return step // self.repeat < self._random

    def updates(self, step: int) -> int:
        """How many updates come with the action at `step`."""
        if self.explores(step):
            return 0
        actions = step // self.repeat
        return int((actions + 1) * self._ratio) - int(actions * self._ratio)
