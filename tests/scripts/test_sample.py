"""Text from a trained model, by `python -m scripts.sample`."""

import subprocess
import sys
from pathlib import Path

import torch

from experiments.language import model
from scripts.sample import continuation
from tests.conftest import REPOSITORY, Command, run_dirs


def sample(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.sample", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_continues_a_prompt_from_a_run_and_from_a_shared_phase(language: Command, tmp_path: Path) -> None:
    assert language("method=none")[0] == 0
    (run,) = run_dirs(tmp_path / "outputs")
    (phase,) = (tmp_path / "outputs/phases").iterdir()
    common = ("--prompt", "The film", "--tokens", "40")
    printed = [sample(str(folder), *common, *extra) for folder, extra in ((run, ()), (phase, ("--checkpoint", "30k")))]
    for result in printed:
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("The film")
        assert len(result.stdout) > 30
    assert printed[0].stdout != printed[1].stdout
    wrong = sample(str(phase), "--checkpoint", "90k")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith(f"error: {phase} has no checkpoint 90k; those there are: ")
    assert "30k" in wrong.stderr
    assert "is not the directory of a run" in sample(str(tmp_path)).stderr


def test_draws_from_the_models_own_distribution() -> None:
    torch.manual_seed(0)
    network = model.GPT(1, 1, 8, 4, 64)
    with torch.no_grad():
        network.lm_head.weight.mul_(20)
    drawn = continuation(network, [1, 2, 3, 4, 5], 4000, 50, temperature=1.0, top_k=0, seed=0)
    assert max(drawn) < 50  # nothing of the padded vocabulary
    # The model sees the last four tokens; among those that follow one context, frequencies are its probabilities.
    greedy = continuation(network, [1, 2, 3, 4, 5], 50, 50, temperature=0, top_k=0, seed=0)
    tokens = [2, 3, 4, 5]
    for token in greedy:
        scores = network.logits(torch.tensor([tokens[-4:]]))[0, -1, :50]
        assert token == int(scores.argmax())
        tokens.append(token)
    first = [continuation(network, [1, 2, 3], 1, 50, 1.0, 0, seed)[0] for seed in range(1500)]
    expected = torch.softmax(network.logits(torch.tensor([[1, 2, 3]]))[0, -1, :50], -1)
    seen = torch.bincount(torch.tensor(first), minlength=50) / len(first)
    assert float((seen - expected.detach()).abs().max()) < 0.04
    top = {continuation(network, [1, 2, 3], 1, 50, 1.0, 3, seed)[0] for seed in range(200)}
    assert top == set(expected.topk(3).indices.tolist())
