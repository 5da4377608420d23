"""The games as several environments in one, and a policy's return in them.

ALE's own vector environment (C++ threads) with the protocol of Machado et al. (2018), section 5: sticky actions, whole
games instead of lives, no no-ops at the start. Its defaults are other ones. With env.sticky=frame ALE draws for each of
the four frames of a step whether the action of the frame before is repeated. With env.sticky=agent_step `StickySteps`
draws once for the whole step, as the authors' wrapper does.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.common.seeding import derive, generator
from experiments.rl.replay import Stored

FRAME_SKIP = 4
FRAME = (84, 84)
STACK = 4  # frames of a state
# On disk at least 22 times smaller, measured on the paper's games.
STORED = Stored(FRAME, torch.uint8, STACK, (), torch.uint8, compression=20)
STICKY = 0.25  # probability that an action is repeated: in each frame, or in each agent step
NO_OP = 0  # the first action of every game but Backgammon and Video Checkers, where it presses the button
MAX_FRAMES = 108_000  # of an episode, 30 minutes of play, after which it is truncated
LONGEST_VIDEO = 9000  # steps, ten minutes of play
SETTINGS = {
    "frameskip": FRAME_SKIP, "maxpool": True, "grayscale": True, "stack_num": STACK, "img_height": FRAME[0],
    "img_width": FRAME[1], "repeat_action_probability": STICKY, "max_num_frames_per_episode": MAX_FRAMES,
    "noop_max": 0, "use_fire_reset": False, "episodic_life": False, "life_loss_info": False,
    "reward_clipping": False, "full_action_space": False,
    # An episode's last observation is returned like any other; the step after it ignores its action, gives no reward
    # and returns the first observation of the next episode.
    "autoreset_mode": "NextStep",
}  # fmt: skip


def make(game: str, count: int, sticky: str = "frame", **settings: Any) -> Any:
    """`count` environments of a game, as one `ale_py.vector_env.AtariVectorEnv`.

    Args:
        sticky: frame: ALE repeats actions; agent_step: it never does, since `StickySteps` does.
        settings: replace those above.
    """
    from ale_py.vector_env import AtariVectorEnv

    probability = STICKY if sticky == "frame" else 0.0
    return AtariVectorEnv(game, count, **{**SETTINGS, "repeat_action_probability": probability, **settings})


class StickySteps:
    """Sticky actions of env.sticky=agent_step: with probability 0.25 an environment plays its previous action again,
    for all four frames, instead of the one that was chosen for it.

    The previous action is the one that was played, itself a repeat or not. Before the first step of an episode it is
    the no-op. This is the wrapper of Stable-Baselines3 that the authors put around the repetition of frames, in
    training and evaluations. Machado et al. (2018), section 5.2, repeat frame by frame instead.

    Attributes:
        repeats: whether it does so; with env.sticky=frame the chosen actions are played, and nothing is drawn.
        previous: the action each environment played last, (environments,) int64.
    """

    def __init__(self, sticky: str, count: int, rng: torch.Generator) -> None:
        """
        Args:
            sticky: agent_step or frame.
            count: environments.
            rng: what repeats are drawn from, on the CPU: one number for each environment and step.
        """
        self.repeats, self._rng = sticky == "agent_step", rng
        self.previous = torch.full((count,), NO_OP)

    def start(self) -> None:
        """Every environment begins an episode."""
        self.previous = torch.full_like(self.previous, NO_OP)

    def play(self, chosen: Tensor, ended: Tensor) -> Tensor:
        """What is played where `chosen` was chosen, both (environments,) int64. `ended` (environments,) bool: whose
        episode has ended, so that this step only resets."""
        if not self.repeats:
            return chosen
        again = torch.rand(len(chosen), generator=self._rng) < STICKY
        played = torch.where(again, self.previous, chosen)
        self.previous = played.masked_fill(ended, NO_OP)
        return played

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self._rng.get_state(), "previous": self.previous}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._rng.set_state(state["generator"])
        self.previous = state["previous"]


def seeds(seed: int, stream: str, step: int, count: int) -> np.ndarray:
    """A seed for each environment for a reset at `step`."""
    return np.array([derive(seed, stream, step, number) % 2**31 for number in range(count)])


class Episodes:
    """Returns and lengths of the episodes of several environments, as their steps come in."""

    def __init__(self, count: int) -> None:
        self.returns, self.lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
        self.ended = np.zeros(count, dtype=bool)  # so that the next step only resets

    def step(self, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> list[tuple[int, float, int]]:
        """Count one step; (environment, return, length) of the episodes that end with it."""
        playing = ~self.ended
        self.returns += np.where(playing, rewards, 0)
        self.lengths += playing
        self.ended = terminated | truncated
        done = [(int(i), float(self.returns[i]), int(self.lengths[i])) for i in np.flatnonzero(self.ended)]
        self.returns[self.ended], self.lengths[self.ended] = 0, 0
        return done


Policy = Callable[[Tensor], Tensor]  # (count, 4, 84, 84) uint8 -> (count,) int64, both on the CPU


def epsilon_greedy(greedy: Tensor, actions: int, epsilon: float, rng: torch.Generator) -> Tensor:
    """Each of the `greedy` actions, or with probability `epsilon` one of all, drawn for each environment."""
    explore = torch.rand(len(greedy), generator=rng) < epsilon
    return torch.where(explore, torch.randint(actions, (len(greedy),), generator=rng), greedy)


def evaluate(
    policy: Policy, game: str, count: int, steps: int, epsilon: float, seed: int, at: int, sticky: str = "frame"
) -> dict[str, float]:
    """Mean return over the episodes that begin within `steps` steps of `count` environments together.

    Every environment plays its share of the steps and its last episode to the end, so that long episodes are not left
    out. `at`, the training step, chooses the seeds. Actions stick as in training.
    """
    envs = make(game, count, sticky)
    share = -(-steps // count)
    rng = generator(seed, "evaluation", at, count)
    sticky_steps = StickySteps(sticky, count, rng)
    observations, _ = envs.reset(seed=seeds(seed, "evaluation", at, count))
    episodes, returns, lengths, taken = Episodes(count), [], [], 0
    playing = np.ones(count, dtype=bool)
    while playing.any():
        chosen = epsilon_greedy(policy(torch.from_numpy(observations)), envs.single_action_space.n, epsilon, rng)
        actions = sticky_steps.play(chosen, torch.from_numpy(episodes.ended))
        observations, rewards, terminated, truncated, _ = envs.step(actions.numpy())
        taken += 1
        for number, total, length in episodes.step(rewards, terminated, truncated):
            if playing[number]:
                returns.append(total)
                lengths.append(length)
                playing[number] = taken < share
    return {
        "eval/return": float(np.mean(returns)),
        "eval/episodes": len(returns),
        "eval/episode_length": float(np.mean(lengths)),
    }


def episode(
    policy: Policy, game: str, epsilon: float, seed: int, sticky: str = "frame"
) -> Iterator[tuple[np.ndarray, float]]:
    """Pictures and rewards of an episode, or of its first ten minutes.

    A second environment in colour and full size plays along: same seed, same actions, same game.
    """
    env = make(game, 1, sticky)
    shown = make(game, 1, sticky, grayscale=False, stack_num=1, img_height=210, img_width=160)
    start, rng = seeds(seed, "evaluation", 0, 1), generator(seed, "evaluation", 0, 1)
    sticky_steps, going_on = StickySteps(sticky, 1, rng), torch.tensor([False])
    observations, colours = env.reset(seed=start)[0], shown.reset(seed=start)[0]
    for _ in range(LONGEST_VIDEO):
        picture, greedy = colours[0, 0].copy(), policy(torch.from_numpy(observations))
        chosen = epsilon_greedy(greedy, env.single_action_space.n, epsilon, rng)
        actions = sticky_steps.play(chosen, going_on).numpy()
        observations, rewards, terminated, truncated, _ = env.step(actions)
        colours = shown.step(actions)[0]
        yield picture, float(rewards[0])
        if terminated[0] | truncated[0]:
            break
