"""HumanoidBench's locomotion tasks of the H1 without hands: rewards, ends of episodes, scores.

Sferrazza et al. (2024), section IV and appendix; every term is a function of the simulation's data after a step of
control.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from experiments.common.errors import UserError

MAX_STEPS = 1000  # of an episode
STAND_HEIGHT = 1.65  # metres, of the head, from which on the robot counts as standing
CRAWL_HEIGHT = (0.6, 1.0)
CRAWL_ORIENTATION = np.array([0.75, 0.0, 0.65, 0.0])  # of the pelvis, a quaternion
UPSIDE = math.inf


@dataclass(frozen=True)
class Body:
    """What rewards depend on, as views of the simulation's memory, which is always the same.

    Attributes:
        head: position of the head, (3,), metres.
        torso: rotation of the torso, (9,); the last is the cosine between its axis and the vertical.
        velocity: of the centre of mass, (3,), metres a second.
        forces: of the actuators, (19,), newton metres.
        imu: position of the pelvis's inertial sensor, (3,).
        orientation: of the pelvis, a quaternion (4,).
    """

    head: np.ndarray
    torso: np.ndarray
    velocity: np.ndarray
    forces: np.ndarray
    imu: np.ndarray
    orientation: np.ndarray


Reward = Callable[[Body], tuple[float, dict[str, float]]]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        reward: of a control step, with its terms by name.
        lowest: height of the root below which an episode ends; None: it does not.
        board: whether the robot balances on a board, so that contacts can end an episode too.
        random, success: return of a random policy, and the one from which on HumanoidBench calls the task solved.
    """

    reward: Reward
    lowest: float | None
    random: float
    success: float
    board: bool = False


def tolerance(
    x: float, low: float, high: float, margin: float, sigmoid: str = "gaussian", at_margin: float = 0.1
) -> float:
    """1 for x in [low, high], falling with the distance to `at_margin` where that is `margin`, as dm_control's
    `rewards.tolerance` (Tassa et al. 2018) does."""
    if low <= x <= high:
        return 1.0
    if margin == 0:
        return 0.0
    distance = (low - x if x < low else x - high) / margin
    if sigmoid == "gaussian":
        return math.exp(distance**2 * math.log(at_margin))
    return max(0.0, 1 - distance * (1 - at_margin))  # linear


def small_control(body: Body) -> float:
    """Between 4/5 and 1, the more the smaller the actuators' forces are."""
    return (4 + float(np.maximum(0.0, 1 - (body.forces / 10) ** 2).mean())) / 5


def forward(body: Body, speed: float) -> float:
    """Between 1/6 and 1, the more the faster the robot moves along x, up to `speed`."""
    return (5 * tolerance(float(body.velocity[0]), speed, UPSIDE, speed, "linear", 0) + 1) / 6


def on_feet(speed: float, height: float = STAND_HEIGHT) -> Reward:
    """Stand upright, the head above `height`, and move along x at `speed` or, where that is 0, stay in one place."""

    def reward(body: Body) -> tuple[float, dict[str, float]]:
        standing = tolerance(float(body.head[2]), height, UPSIDE, STAND_HEIGHT / 4)
        upright = tolerance(float(body.torso[8]), 0.9, UPSIDE, 1.9, "linear", 0)
        terms = {"standing": standing, "upright": upright, "stand_reward": standing * upright}
        terms["small_control"] = small_control(body)
        if speed:
            aim = terms["move"] = forward(body, speed)
        else:
            aim = terms["dont_move"] = sum(tolerance(float(v), 0, 0, 2) for v in body.velocity[:2]) / 2
        return terms["small_control"] * terms["stand_reward"] * aim, terms

    return reward


def crawling(body: Body) -> tuple[float, dict[str, float]]:
    """Crawl through a tunnel along x."""
    terms = {
        "crawling": tolerance(float(body.imu[2]), *CRAWL_HEIGHT, 1),
        "crawling_head": tolerance(float(body.head[2]), *CRAWL_HEIGHT, 1),
        "small_control": small_control(body),
        "move": forward(body, 1),
        "in_tunnel": tolerance(float(body.imu[1]), -1, 1, 0),
    }
    turned = tolerance(float(np.linalg.norm(body.orientation - CRAWL_ORIENTATION)), 0, 0, 1)
    total = 0.1 * terms["small_control"] + 0.4 * terms["move"] + 0.25 * turned
    total += 0.25 * min(terms["crawling"], terms["crawling_head"])
    return total * terms["in_tunnel"], terms


ON_BOARD = STAND_HEIGHT + 0.37
# Scores of a random policy and of success: HumanoidBench's, as SimBa's code has them.
TASKS: Mapping[str, Task] = {
    "h1-walk": Task(on_feet(1), 0.2, 2.4, 700),
    "h1-run": Task(on_feet(5), 0.2, 2.0, 700),
    "h1-stand": Task(on_feet(0), 0.2, 10.5, 800),
    "h1-balance_simple": Task(on_feet(0, ON_BOARD), 0.8, 9.4, 800, board=True),
    "h1-crawl": Task(crawling, None, 272.7, 700),
}


def resolve(name: str) -> str:
    """A task's name, from that or from Gymnasium's: h1-walk, h1-walk-v0, walk.

    Raises:
        UserError: no such task.
    """
    plain = name.removesuffix("-v0").lower()
    for candidate in (plain, f"h1-{plain}"):
        if candidate in TASKS:
            return candidate
    close = difflib.get_close_matches(plain, TASKS, n=1)
    near = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"task={name} is unknown; {near}there are: {', '.join(TASKS)}")


def normalised(task: str, score: float) -> float | None:
    """0 for a random policy, 1 where HumanoidBench calls the task solved; None for a task not known."""
    if task not in TASKS:
        return None
    known = TASKS[task]
    return (score - known.random) / (known.success - known.random)
