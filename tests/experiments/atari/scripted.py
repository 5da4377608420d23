"""An environment with known action values, behind the interface of ALE's vector environment.

Two places and an end, discount 0.8:

| place | action 0            | action 1         | values    |
|-------|---------------------|------------------|-----------|
| A     | stays, reward 0.3   | to B, reward 0   | 1.5, 0.96 |
| B     | to A, reward 0      | ends, reward 1   | 1.2, 1.0  |

An episode is truncated after 5 steps. Whoever takes that for the end, or the step that only resets for one that leads
from the last observation to the first of the next episode, finds other values.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

DISCOUNT = 0.8
VALUES = {"A": (1.5, 0.96), "B": (1.2, 1.0)}
LENGTH = 5
PLACES = {"A": slice(0, 42), "B": slice(42, 84), "end": slice(0, 84)}


def frame(place: str) -> np.ndarray:
    """What is seen, (84, 84) uint8."""
    picture = np.zeros((84, 84), dtype=np.uint8)
    picture[:, PLACES[place]] = 200
    return picture


class Scripted:
    """`count` of them; the first observation of an episode has three empty frames."""

    def __init__(self, count: int) -> None:
        self.count, self.single_action_space = count, SimpleNamespace(n=2)

    def reset(self, seed: np.ndarray) -> tuple[np.ndarray, dict]:
        assert len(seed) == self.count
        self.places, self.ages, self.over = ["A"] * self.count, [0] * self.count, [False] * self.count
        self.stacks = np.zeros((self.count, 4, 84, 84), dtype=np.uint8)
        self.stacks[:, -1] = frame("A")
        return self.stacks.copy(), {}

    def send(self, actions: np.ndarray) -> None:
        self.actions = actions

    def recv(self) -> tuple[Any, ...]:
        rewards = np.zeros(self.count, dtype=np.float32)
        terminated, truncated = np.zeros((2, self.count), dtype=bool)
        for i, action in enumerate(self.actions):
            if self.over[i]:
                self.places[i], self.ages[i], self.over[i] = "A", 0, False
                self.stacks[i] = 0
            else:
                step = {("A", 0): ("A", 0.3), ("A", 1): ("B", 0), ("B", 0): ("A", 0), ("B", 1): ("end", 1)}
                self.places[i], rewards[i] = step[self.places[i], int(action)]
                self.ages[i] += 1
                terminated[i] = self.places[i] == "end"
                truncated[i] = self.ages[i] == LENGTH and not terminated[i]
                self.over[i] = bool(terminated[i] or truncated[i])
            self.stacks[i, :-1] = self.stacks[i, 1:]
            self.stacks[i, -1] = frame(self.places[i])
        return self.stacks.copy(), rewards, terminated, truncated, {}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        self.send(actions)
        return self.recv()
