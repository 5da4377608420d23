"""Text from a trained language model: `python -m scripts.sample outputs/language/.../fire-s0-...`.

Takes a finished run, whose final weights it uses, or a shared phase 0 (`outputs/phases/...`) and its `--checkpoint`.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from experiments.common import checkpoint, run_files, schema
from experiments.common.config import data_folder
from experiments.common.errors import UserError
from experiments.language import model, tokenizers
from experiments.language.best import BEST
from experiments.language.config import LanguageConfig
from experiments.language.model import GPT
from fire.checks import check_number, check_whole
from scripts import command


def load(folder: Path, name: str | None) -> tuple[GPT, tokenizers.Tokenizer]:
    """The network and tokenizer of a run or shared phase, with the checkpoint kept as `name`, by default that of the
    finished run, or `best`, or the latest.

    Raises:
        UserError: no such run or checkpoint, or a damaged one.
    """
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} is not the directory of a run")
    if "tokenizer" not in run_files.configuration(folder):
        raise UserError(f"{folder} is not a run of a language model")
    cfg = run_files.configuration(folder, LanguageConfig)
    schema.check(LanguageConfig, cfg)
    names = [name] if name else [checkpoint.FINAL, BEST, *reversed(list(checkpoint.kept(folder)))]
    path, content = checkpoint.read_kept(folder, *names)
    network = model.build(cfg)
    try:
        network.load_state_dict(content["state"]["model"])
    except RuntimeError as error:
        raise UserError(f"{path} is of another network: {str(error).splitlines()[0]}") from error
    return network.eval(), tokenizers.load(cfg.tokenizer, data_folder(cfg))


@torch.no_grad()
def continuation(
    network: GPT, tokens: list[int], count: int, known: int, temperature: float, top_k: int, seed: int
) -> list[int]:
    """`count` tokens after `tokens`, drawn one by one.

    Args:
        network: the model; it sees the last `block` tokens.
        tokens: what they follow, at least one.
        count: how many.
        known: tokens of the tokenizer; the vocabulary is padded beyond them.
        temperature: 0 always takes the likeliest token.
        top_k: draw only from so many of the likeliest tokens; 0: from all.
        seed: of the draws.
    """
    block, source, sequence = network.wpe.weight.shape[0], torch.Generator().manual_seed(seed), list(tokens)
    for _ in range(count):
        scores: Tensor = network.logits(torch.tensor([sequence[-block:]]))[0, -1, :known]
        if temperature == 0:
            sequence.append(int(scores.argmax()))
            continue
        if top_k:
            scores[scores < scores.topk(min(top_k, known)).values[-1]] = float("-inf")
        sequence.append(int(torch.multinomial(torch.softmax(scores / temperature, dim=-1), 1, generator=source)))
    return sequence[len(tokens) :]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m scripts.sample", description=__doc__)
    parser.add_argument("run", type=command.folder, help="directory of a run, or of a shared phase")
    parser.add_argument("--checkpoint", help="which kept checkpoint: best, 30k, 60k, ..., final")
    parser.add_argument("--prompt", default="", help="text to continue; default: the beginning of a document")
    parser.add_argument("--tokens", type=int, default=300, help="how many (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="default: %(default)s; 0: no chance")
    parser.add_argument("--top-k", type=int, default=50, help="default: %(default)s; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        check_whole("--tokens", given.tokens, 1, 10**6)
        check_number("--temperature", given.temperature, 0 if given.temperature == 0 else 0.001, 1000)
        check_whole("--top-k", given.top_k, 0, 10**6)
        check_whole("--seed", given.seed, 0, 2**32 - 1)
        given.prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError("--prompt is not UTF-8") from error
    except ValueError as error:
        raise UserError(str(error)) from error
    network, tokenizer = load(given.run, given.checkpoint)
    start = [tokenizer.end, *tokenizer.encode(given.prompt).tolist()]
    drawn = continuation(network, start, given.tokens, tokenizer.tokens, given.temperature, given.top_k, given.seed)
    print(given.prompt + tokenizer.decode(drawn))


if __name__ == "__main__":
    sys.exit(command.run(main))
