"""The games: their names, and the scores of a random and a human player."""

import csv
import difflib
import re
from pathlib import Path

from experiments.common.errors import UserError

_, *_SCORES = Path(__file__).with_name("human_scores.csv").read_text("utf-8").splitlines()
RANDOM_AND_HUMAN = {game: (float(random), float(human)) for game, random, human in csv.reader(_SCORES)}
"""Mean episode return of a uniformly random policy and of a professional human tester, with up to 30 no-op starts, not
sticky actions (Mnih et al. 2015 and Wang et al. 2016, as tabulated with DQN Zoo)."""


def resolve(name: str) -> str:
    """ALE's name of a game, from that or from Gymnasium's: beam_rider, BeamRider, ALE/BeamRider-v5,
    BeamRiderNoFrameskip-v4.

    Raises:
        UserError: no such game.
    """
    from ale_py import roms

    games = sorted(roms.get_all_rom_ids())
    plain = re.sub(r"^ALE/|(-ram)?(NoFrameskip|Deterministic)?(-v\d+)?$", "", name)
    # Some names have underscores where others have none: compare without.
    letters = {re.sub(r"[_\W]", "", game).lower(): game for game in games}
    asked = re.sub(r"[_\W]", "", plain).lower()
    if asked in letters:
        return letters[asked]
    close = difflib.get_close_matches(asked, letters, n=3)
    near = f"did you mean {', '.join(letters[c] for c in close)}?" if close else f"there are: {', '.join(games)}"
    raise UserError(f"game={name} is unknown; {near}")


def human_normalised(game: str, score: float) -> float | None:
    """0 for a random, 1 for a human player; None where no scores are known."""
    if game not in RANDOM_AND_HUMAN:
        return None
    random, human = RANDOM_AND_HUMAN[game]
    return (score - random) / (human - random)
