"""What a run will cost, measured on a few steps before it starts."""

import torch
from omegaconf import DictConfig

from experiments.common import config
from experiments.common.replay import Batch
from experiments.common.throughput import steps_per_second
from experiments.humanoid import envs, models
from experiments.humanoid.learner import Learner

SECONDS = 5.0


def describe_cost(cfg: DictConfig, runtime: config.Runtime, disk_bytes: int) -> str:
    """Hours and disk of a run with this configuration, in one line.

    A throwaway learner learns from noise for about `SECONDS`, and a robot acts at random for as long; no generator of
    the run is touched.
    """
    budget, repeat = cfg.budget, cfg.sac.action_repeat
    steps = sum(budget.steps)
    evaluations = 1 + sum(-(-phase // budget.eval_every) for phase in budget.steps)
    played = evaluations * budget.eval_episodes * envs.MAX_STEPS
    updates = steps / repeat * cfg.sac.replay_ratio
    player = envs.Player(envs.make(cfg.task, cfg.env.backend, config.data_folder(cfg)), repeat)
    learning, acting = updates_per_second(cfg, runtime, player), environment_steps_per_second(player)
    # The simulation runs beside the updates.
    hours = (max(updates / learning, steps / acting) + played / acting) / 3600
    return (
        f"estimated: {hours:.1f} hours here ({updates / 1e6:.2f} million updates at {learning:,.0f} a second, "
        f"{steps / 1e6:.2f} million environment steps and {played / 1e6:.2f} million of evaluations, at most, at "
        f"{acting:,.0f}, measured; a shared phase 0 makes it less), up to {disk_bytes / 1e9:.1f} GB of checkpoints, no "
        "download"
    )


def updates_per_second(cfg: DictConfig, runtime: config.Runtime, player: envs.Player) -> float:
    """How fast networks of the run's kind learn on this machine."""
    (observation,), (actions,) = player.env.observation_space.shape, player.env.action_space.shape
    learner = Learner(models.build(observation, actions, cfg.budget, seed=0), observation, actions, cfg, runtime)
    count, rng = 2 * cfg.budget.batch_size, torch.Generator().manual_seed(0)
    frames, ones = torch.randn((count, 2, observation), generator=rng), torch.ones(count)
    batch = Batch(*(t.to(runtime.device) for t in (frames, torch.zeros(count, actions), ones, 0 * ones, ones)))

    def step() -> None:
        learner.update(batch, learner.noise(count, rng))
        learner.totals.tolist()  # waits for the device

    return 2 * steps_per_second(step, SECONDS)


def environment_steps_per_second(player: envs.Player) -> float:
    """How fast the simulation runs here."""
    player.reset(0)
    rng = torch.Generator().manual_seed(0)
    (actions,) = player.env.action_space.shape
    steps = [0, 0]  # taken, calls

    def step() -> None:
        outcome = player.step((2 * torch.rand(actions, generator=rng) - 1).numpy())
        steps[0] += outcome.steps
        steps[1] += 1
        if outcome.terminated or outcome.truncated:
            player.reset()

    return steps_per_second(step, SECONDS, at_most=20_000) * steps[0] / steps[1]
