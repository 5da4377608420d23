"""What happens at which step of the Atari domain."""

from omegaconf import DictConfig

from experiments.rl import training


class Schedule(training.Schedule):
    """Steps are agent steps, of all environments together."""

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg.budget)
        budget, dqn = cfg.budget, cfg.dqn
        self.environments, self.batch_size = dqn.environments, dqn.batch_size
        self._learning_starts, self._replay_ratio = budget.learning_starts, cfg.replay_ratio
        self.most_updates = int(dqn.environments * cfg.replay_ratio) + 1
        self._epsilon, self._decay = tuple(dqn.epsilon), dqn.exploration_fraction * sum(budget.steps)
        self._target, self._restart = budget.target_every, budget.restart_every

    def epsilon(self, step: int) -> float:
        """Probability of a random action at `step`."""
        first, last = self._epsilon
        return first + (last - first) * min(step / self._decay, 1.0) if self._decay else last

    def updates(self, step: int) -> int:
        """How many updates come with the step that all environments take at `step`."""
        if step < self._learning_starts:
            return 0
        return int((step + self.environments) * self._replay_ratio) - int(step * self._replay_ratio)

    def updates_target(self, step: int) -> bool:
        """Whether the target network is updated after `step`."""
        return step >= self._learning_starts and step % self._target == 0

    def restarts(self, step: int) -> bool:
        """Whether the environments are started again at `step`."""
        return step % self._restart == 0
