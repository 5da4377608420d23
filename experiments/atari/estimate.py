"""What a run will cost, measured on a few steps before it starts."""

import torch
from omegaconf import DictConfig

from experiments.atari import envs, models
from experiments.atari.envs import FRAME, STACK, STORED, bytes_on_disk
from experiments.atari.learner import Learner
from experiments.common.config import Runtime
from experiments.common.replay import Batch
from experiments.common.throughput import steps_per_second

SECONDS = 5.0


def describe_cost(cfg: DictConfig, runtime: Runtime) -> str:
    """Hours, disk and download of a run with this configuration, in one line.

    A throwaway learner learns from noise for about `SECONDS`, and environments play at random for as long; no generator
    of the run is touched.
    """
    steps = sum(cfg.budget.steps)
    evaluations = 1 + sum(-(-phase // cfg.budget.eval_every) for phase in cfg.budget.steps)
    updates, acted = steps * cfg.replay_ratio, steps + evaluations * cfg.budget.eval_steps
    learning, acting = updates_per_second(cfg, runtime), environment_steps_per_second(cfg, runtime)
    capacity = min(cfg.budget.buffer, steps)
    memory, disk = capacity * STORED.bytes / 1e9, 2 * bytes_on_disk(capacity) / 1e9
    hours = (updates / learning + acted / acting) / 3600
    return (
        f"estimated: {hours:.1f} hours here ({updates / 1e6:.2f} million updates "
        f"at {learning:,.0f} and {acted / 1e6:.2f} million agent steps, those of evaluations "
        f"included, at {acting:,.0f} a second, measured; a shared "
        f"phase 0 makes it less), {memory:.1f} GB of memory for the replay buffer, up to {disk:.1f} GB of "
        f"checkpoints, no download"
    )


def updates_per_second(cfg: DictConfig, runtime: Runtime) -> float:
    """How fast a network of the run's kind learns on this machine."""
    learner = Learner(models.build(cfg.budget, 18, seed=0), cfg, runtime)
    size, rng = cfg.dqn.batch_size, torch.Generator().manual_seed(0)
    frames = torch.randint(256, (size, STACK + 1, *FRAME), generator=rng, dtype=torch.uint8)
    ones = torch.ones(size)
    batch = Batch(*(t.to(runtime.device) for t in (frames, ones.long(), ones, ones, ones)))

    def step() -> None:
        for _ in range(10):
            learner.update(batch)
        learner.totals.tolist()  # waits for the device

    return 10 * steps_per_second(step, SECONDS)


def environment_steps_per_second(cfg: DictConfig, runtime: Runtime) -> float:
    """How fast the environments and the network that acts in them play here."""
    count = cfg.dqn.environments
    envs_here = envs.make(cfg.game, count)
    learner = Learner(models.build(cfg.budget, int(envs_here.single_action_space.n), seed=0), cfg, runtime)
    shown = [torch.from_numpy(envs_here.reset(seed=0)[0])]
    rng = torch.Generator().manual_seed(0)

    def step() -> None:
        greedy = learner.act(shown[0])
        actions = envs.epsilon_greedy(greedy, int(envs_here.single_action_space.n), 1.0, rng)
        shown[0] = torch.from_numpy(envs_here.step(actions.numpy())[0])

    return count * steps_per_second(step, SECONDS, at_most=20_000)
