"""How each domain's results are reported: `experiments.<domain>.domain`.

Until atari and humanoid have that module, their values stand here. Then this file goes, and what imports
`results_of` asks `experiments.domains.domain(name).results` instead.
"""

from importlib.util import find_spec

from experiments.atari.games import human_normalised
from experiments.common.domain import Results
from experiments.domains import domain
from experiments.humanoid.tasks import normalised

FALLBACK = {
    "atari": Results(
        metric="train/return", title="return of training episodes", step="env_step", steps="agent steps",
        figure="Figure 4(a)",
        panels={"asterix": "dqn_asterix", "beam_rider": "dqn_beamrider", "demon_attack": "dqn_demonattack"},
        paper_step=1e6, from_start=lambda _: True,
        apart={"eval/return": ("evaluation, epsilon 0.001", "evaluation")},
        axis="return", decimals=0, normalised=("human-normalised", human_normalised),
        warning="too short to rank methods",
    ),
    "humanoid": Results(
        metric="eval/return", title="return of evaluation episodes", step="env_step", steps="environment steps",
        figure="Figure 4(b)",
        panels={"h1-walk": "sac_walk", "h1-balance_simple": "sac_balance", "h1-run": "sac_run"},
        paper_step=1e6, from_start=lambda _: True, apart={"train/return": ("training episodes", "training")},
        axis="return", decimals=1, normalised=("success-normalised", normalised), warning="too short to rank methods",
    ),
}  # fmt: skip


def results_of(name: str) -> Results:
    """How a domain's results are reported."""
    return domain(name).results if find_spec(f"experiments.{name}.domain") else FALLBACK[name]
