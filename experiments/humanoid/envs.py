"""The tasks, whichever package they come from: repeated actions, bounded episodes, and a state that can be saved."""

# Before MuJoCo, which with MUJOCO_GL=osmesa loads a library that Triton, loaded by the first optimiser, crashes beside.
import torch._dynamo  # isort: skip

import importlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from experiments.common.errors import UserError
from experiments.common.seeding import derive
from experiments.humanoid import assets
from experiments.humanoid.native import CAMERA, H1Env
from experiments.humanoid.tasks import MAX_STEPS

logger = logging.getLogger("fire")
STEP_SECONDS = 0.02  # of a step of control
WIDTH, HEIGHT = 480, 360  # of a picture
UPSTREAM_HINT = (
    "install its pins (uv pip install '.[experiments,humanoid,humanoid-bench]'), then HumanoidBench itself, a clone of "
    "github.com/carlosferrazza/humanoid-bench, with: uv pip install --no-deps -e <the clone>"
)
STATE = mujoco.mjtState.mjSTATE_INTEGRATION  # everything the next step depends on, the solver's first guess included
# Otherwise it writes a file MUJOCO_LOG.TXT into whatever folder it is run in.
mujoco.set_mju_user_warning(lambda text: logger.debug("MuJoCo: %s", text))
FATAL = (  # after these MuJoCo continues from a reset state
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
    mujoco.mjtWarning.mjWARN_BADCTRL,
)


def resolve_backend(asked: str) -> str:
    """`native` or `humanoid_bench`.

    Raises:
        UserError: not installed.
    """
    if asked == "native":
        return asked
    try:
        importlib.import_module("humanoid_bench")
        return "humanoid_bench"
    except Exception as error:  # other versions of MuJoCo than its own make it fail in many ways
        problem = f"{'cannot be imported' if isinstance(error, ImportError) else 'fails to import'} ({error})"
        if asked == "humanoid_bench":
            raise UserError(f"env.backend=humanoid_bench {problem}; {UPSTREAM_HINT}") from error
        if getattr(error, "name", None) != "humanoid_bench":  # it is there, but something is wrong with it
            logger.info("humanoid_bench %s: env.backend=native", problem)
    return "native"


def describe(backend: str) -> dict[str, str]:
    """What numbers depend on beyond the settings; part of a run's identity."""
    packages = ["mujoco", *(["humanoid_bench", "dm_control"] if backend == "humanoid_bench" else [])]
    return {"name": backend, **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a folder on the path
        return "not installed"


def make(task: str, backend: str, data_dir: Path) -> Any:
    """An environment of a task, without Gymnasium's wrappers."""
    if backend == "native":
        return H1Env(task, assets.folder(data_dir))
    import gymnasium

    return gymnasium.make(f"{task}-v0", render_mode=None).unwrapped


class Outcome(NamedTuple):
    """What came of an action: the next observation, the sum of the rewards, whether and how the episode ended."""

    observation: np.ndarray
    reward: float
    terminated: bool
    truncated: bool


class Player:
    """One environment in which every action is repeated, with episodes of at most `MAX_STEPS` steps.

    Attributes:
        env: the environment.
        taken: steps of the episode so far.
    """

    def __init__(self, env: Any, repeat: int) -> None:
        self.env, self.repeat, self.taken = env, repeat, 0

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Begin an episode; its first observation."""
        self.taken = 0
        return self.env.reset(seed=seed)[0]

    def step(self, action: np.ndarray) -> Outcome:
        """Take an action.

        Raises:
            FloatingPointError: the simulation has come to values that are not finite.
        """
        total = 0.0
        for _ in range(self.repeat):
            observation, reward, terminated, *_ = self.env.step(action)
            total += float(reward)
            self.taken += 1
            truncated = self.taken >= MAX_STEPS
            if terminated or truncated:
                break
        if any(self.env.data.warning[kind].number for kind in FATAL) or not np.isfinite(observation).all():
            raise FloatingPointError("the simulation has values that are not finite")
        return Outcome(observation, total, bool(terminated), truncated and not terminated)

    def state_dict(self) -> dict[str, Any]:
        """All a checkpoint needs to continue in the middle of an episode."""
        env = self.env
        physics = np.empty(mujoco.mj_stateSize(env.model, STATE))
        mujoco.mj_getState(env.model, env.data, physics, STATE)
        # As text, because the generator's integers are larger than what a tensor holds.
        random = json.dumps(env.np_random.bit_generator.state)
        return {"physics": torch.from_numpy(physics), "taken": self.taken, "random": random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        env = self.env
        env.reset(seed=0)  # so that there is a generator, and nothing is left of another episode
        mujoco.mj_setState(env.model, env.data, state["physics"].numpy(), STATE)
        env.np_random.bit_generator.state = json.loads(state["random"])
        self.taken = state["taken"]


Policy = Callable[[Tensor], Tensor]  # (count, observation) -> (count, action), both float32 on the CPU


def evaluate(
    policy: Policy, players: Sequence[Player], pool: ThreadPoolExecutor, seed: int, at: int
) -> dict[str, float]:
    """Mean return of an episode of each of `players`; `at`, the training step, chooses the seeds."""
    seeds = [derive(seed, "evaluation", at, number) % 2**31 for number in range(len(players))]
    observations = np.stack([player.reset(one) for player, one in zip(players, seeds, strict=True)])
    returns = np.zeros(len(players))
    playing = list(range(len(players)))
    while playing:
        actions = policy(torch.from_numpy(observations).float()).numpy()
        stepped = pool.map(Player.step, [players[i] for i in playing], actions[playing])
        outcomes = dict(zip(playing, stepped, strict=True))
        for number, outcome in outcomes.items():
            observations[number] = outcome.observation
            returns[number] += outcome.reward
        playing = [number for number, outcome in outcomes.items() if not (outcome.terminated or outcome.truncated)]
    return {
        "eval/return": float(returns.mean()),
        "eval/episodes": len(players),
        "eval/episode_length": float(np.mean([player.taken for player in players])),
    }


def episode(policy: Policy, player: Player, seed: int) -> Iterator[tuple[np.ndarray, float]]:
    """Pictures and rewards of an episode without noise."""
    model = player.env.model
    model.vis.global_.offwidth, model.vis.global_.offheight = WIDTH, HEIGHT
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        # Shadows as fine as these models ask for are nearly all of the time where no GPU draws.
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        observation, ended = player.reset(derive(seed, "evaluation", 0, 0) % 2**31), False
        while not ended:
            renderer.update_scene(player.env.data, CAMERA)
            picture = renderer.render()
            action = policy(torch.from_numpy(observation).float()[None])[0]
            observation, reward, terminated, truncated = player.step(action.numpy())
            yield picture, reward
            ended = terminated or truncated
