"""What happens at which step of the Atari domain."""

from omegaconf import DictConfig

from experiments.rl import training


class Schedule(training.Schedule):
    """Steps are agent steps, of all environments together; a stride is one of each."""

    def __init__(self, cfg: DictConfig) -> None:
        budget, dqn = cfg.budget, cfg.dqn
        super().__init__(budget, dqn.environments, 1, cfg.replay_ratio, budget.learning_starts, dqn.batch_size)
        self._epsilon, self._decay = tuple(dqn.epsilon), dqn.exploration_fraction * sum(budget.steps)
        self._target, self._restart = budget.target_every, budget.restart_every

    def epsilon(self, step: int) -> float:
        """Probability of a random action at `step`."""
        first, last = self._epsilon
        return first + (last - first) * min(step / self._decay, 1.0) if self._decay else last

    def updates_target(self, step: int) -> bool:
        """Whether the target network is updated after `step`."""
        return self.learns(step) and step % self._target == 0

    def restarts(self, step: int) -> bool:
        """Whether the environments are started again at `step`."""
        return step % self._restart == 0
