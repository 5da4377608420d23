"""The protocol of the environments, on real games."""

import inspect
import itertools

import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv

from experiments.atari import envs, games
from experiments.common.errors import UserError
from experiments.common.seeding import generator


def play(env: AtariVectorEnv, steps: int, seed: int = 0, actions_seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    """Observations, rewards, ends and frame numbers under random actions."""
    rng = np.random.default_rng(actions_seed)
    env.reset(seed=np.arange(seed, seed + env.num_envs))
    taken = []
    for _ in range(steps):
        observations, rewards, terminated, truncated, info = env.step(rng.integers(0, 9, env.num_envs))
        taken.append(
            (observations.copy(), rewards.copy(), terminated.copy(), truncated.copy(), info["episode_frame_number"])
        )
    return taken


def test_settings_are_all_named_and_the_protocols() -> None:
    parameters = inspect.signature(AtariVectorEnv.__init__).parameters
    free = {"self", "game", "num_envs", "batch_size", "num_threads", "thread_affinity_offset"}
    continuous = {"continuous", "continuous_action_threshold"}
    assert set(parameters) - free - continuous == set(envs.SETTINGS)  # a new default of ALE's would be noticed
    expected = {
        "frameskip": 4, "maxpool": True, "grayscale": True, "stack_num": 4, "img_height": 84, "img_width": 84,
        "repeat_action_probability": 0.25, "noop_max": 0, "use_fire_reset": False, "episodic_life": False,
        "reward_clipping": False, "max_num_frames_per_episode": 108_000, "autoreset_mode": "NextStep",
    }  # fmt: skip
    assert {key: envs.SETTINGS[key] for key in expected} == expected


def test_rewards_are_raw_and_episodes_whole_games() -> None:
    taken = play(envs.make("asterix", 4), 400)
    rewards = np.stack([rewards for _, rewards, *_ in taken])
    assert rewards.max() == 50  # Asterix counts in fifties; the learner clips
    first_end = np.argmax(np.stack([ends for _, _, ends, *_ in taken])[:, 0])
    assert first_end > 100  # three lives


def test_the_step_after_an_end_only_resets() -> None:
    """The last observation comes like any other; the next step ignores its action and shows the first frame."""
    env = envs.make("asterix", 4)
    first = env.reset(seed=np.arange(4))[0].copy()
    assert not first[:, :3].any()  # no-ops would have filled the stack
    assert first[:, 3].any()
    taken = play(env, 600)
    found = 0
    for before, after in itertools.pairwise(taken):
        for i in np.flatnonzero(before[2] | before[3]):
            found += 1
            assert after[1][i] == 0
            assert not after[2][i]
            assert not after[3][i]
            assert after[4][i] == 0
            assert np.array_equal(after[0][i], first[i])
            assert before[0][i][:3].any()
    assert found >= 4


def test_long_episodes_are_truncated_not_terminated() -> None:
    taken = play(envs.make("asterix", 2, max_num_frames_per_episode=200), 60)
    assert not any(terminated.any() for _, _, terminated, *_ in taken)
    assert sum(int(truncated.sum()) for _, _, _, truncated, _ in taken) == 2


def test_actions_stick_by_seed() -> None:
    """Equal seeds and actions give equal games, on whatever the environment did before; other seeds other games."""
    env = envs.make("asterix", 2)
    one = play(env, 120, seed=0)
    play(env, 33, seed=9)
    again, other = play(env, 120, seed=0), play(env, 120, seed=5)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(one, other, strict=True))
    still = envs.make("asterix", 2, repeat_action_probability=0.0)
    one, other = play(still, 60, seed=0), play(still, 60, seed=5)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(one, other, strict=True))  # nothing else is random


def test_evaluation_counts_whole_episodes() -> None:
    calls = []

    def policy(states: torch.Tensor) -> torch.Tensor:
        calls.append(states.shape)
        return torch.full((len(states),), 2)

    result = envs.evaluate(policy, "asterix", 2, steps=600, epsilon=0.2, seed=0, at=100)
    assert result == envs.evaluate(policy, "asterix", 2, steps=600, epsilon=0.2, seed=0, at=100)
    assert result != envs.evaluate(policy, "asterix", 2, steps=600, epsilon=0.2, seed=0, at=200)
    assert result["eval/episodes"] >= 2
    assert result["eval/return"] * result["eval/episodes"] % 50 == pytest.approx(0)  # Asterix counts in fifties
    assert calls[0] == (2, 4, 84, 84)
    # Every environment has played its half of the steps, and its last episode to the end.
    assert result["eval/episodes"] * result["eval/episode_length"] > 590


def test_episodes_add_up() -> None:
    episodes = envs.Episodes(2)
    no, yes = np.array([False, False]), np.array([True, False])
    assert episodes.step(np.array([1.0, 2.0]), no, no) == []
    assert episodes.step(np.array([3.0, 2.0]), yes, no) == [(0, 4.0, 2)]
    assert episodes.step(np.array([9.0, 2.0]), no, no) == []  # the first environment only resets
    assert episodes.step(np.array([5.0, 1.0]), no, np.array([True, True])) == [(0, 5.0, 1), (1, 7.0, 4)]


def test_each_environment_explores_by_itself() -> None:
    rng = generator(0, "exploration")
    chosen = torch.stack([envs.epsilon_greedy(torch.full((4,), 7), 7, 0.3, rng) for _ in range(4000)])
    explored = (chosen < 7).float()
    assert explored.mean() == pytest.approx(0.3, abs=0.02)
    assert explored.prod(1).mean() == pytest.approx(0.3**4, abs=0.01)  # not all four together
    counts = torch.bincount(chosen[chosen < 7], minlength=7) / (chosen < 7).sum()
    assert counts.tolist() == pytest.approx([1 / 7] * 7, abs=0.02)


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("asterix", "asterix"), ("BeamRider", "beam_rider"), ("ALE/BeamRider-v5", "beam_rider"),
        ("BeamRiderNoFrameskip-v4", "beam_rider"), ("demon_attack", "demon_attack"), ("Demon-Attack", "demon_attack"),
        ("TicTacToe3D", "tic_tac_toe_3d"), ("MsPacman", "ms_pacman"),
    ],
)  # fmt: skip
def test_usual_names(name: str, game: str) -> None:
    assert games.resolve(name) == game


def test_unknown_game_suggests_near_ones() -> None:
    with pytest.raises(UserError, match=r"game=asterics is unknown; did you mean .*asterix"):
        games.resolve("asterics")
    with pytest.raises(UserError, match=r"game=chess960xyz is unknown; there are: adventure, .*zaxxon"):
        games.resolve("chess960xyz")


def test_human_scores_are_of_known_games() -> None:
    from ale_py import roms

    assert set(games.RANDOM_AND_HUMAN) <= set(roms.get_all_rom_ids())
    assert len(games.RANDOM_AND_HUMAN) == 57
    assert games.human_normalised("asterix", 8503.3) == pytest.approx(1)
    assert games.human_normalised("asterix", 210) == 0
    assert games.human_normalised("othello", 1.0) is None
