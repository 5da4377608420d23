"""Text from a trained language model: `python -m scripts.sample outputs/language/.../fire-s0-...`.

Takes a finished run, whose final weights it continues with, or a shared phase 0 (`outputs/phases/...`), of which
`--checkpoint` chooses one that is kept.
"""

import argparse
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from experiments.common import checkpoint
from experiments.common.config import data_folder
from experiments.common.errors import UserError
from experiments.language import protocol, tokenizers
from experiments.language.model import GPT


def load(folder: Path, name: str | None) -> tuple[GPT, tokenizers.Tokenizer]:
    """The network and tokenizer of a run or shared phase.

    Args:
        folder: the run's directory.
        name: of a kept checkpoint; None: the only one, or `best`, or that of the finished run.

    Raises:
        UserError: no such run or checkpoint, or a damaged one.
    """
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} is not the directory of a run")
    cfg = OmegaConf.load(folder / "config.yaml")
    if "tokenizer" not in cfg:
        raise UserError(f"{folder} is not a run of a language model")
    kept = checkpoint.kept(folder)
    names = [name] if name else [checkpoint.FINAL, protocol.BEST, *reversed(list(kept))]
    path = next((kept[one] for one in names if one in kept), None)
    if path is None:
        there = ", ".join(kept) or "none; it is not finished"
        raise UserError(f"{folder} has no checkpoint{f' {name}' if name else ''}; those there are: {there}")
    content = checkpoint.read(path)
    if content is None:
        raise UserError(f"{path} is damaged")
    network = protocol.build_model(cfg)  # type: ignore[arg-type]
    try:
        network.load_state_dict(content["state"]["model"])
    except RuntimeError as error:
        raise UserError(f"{path} is of another network: {str(error).splitlines()[0]}") from error
    return network.eval(), tokenizers.load(cfg.tokenizer, data_folder(cfg))  # type: ignore[arg-type]


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
        temperature: 0 takes the likeliest token always.
        top_k: draw from so many likeliest tokens only; 0: from all.
        seed: of the draws.
    """
    block = network.wpe.weight.shape[0]
    source = torch.Generator().manual_seed(seed)
    sequence = list(tokens)
    for _ in range(count):
        scores: Tensor = network.logits(torch.tensor([sequence[-block:]]))[0, -1, :known]
        if temperature == 0:
            sequence.append(int(scores.argmax()))
            continue
        if top_k:
            scores[scores < scores.topk(min(top_k, known)).values[-1]] = float("-inf")
        sequence.append(int(torch.multinomial(torch.softmax(scores / temperature, dim=-1), 1, generator=source)))
    return sequence[len(tokens) :]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.sample", description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a run, or of a shared phase")
    parser.add_argument("--checkpoint", help="which kept checkpoint: best, 30k, 60k, ..., final")
    parser.add_argument("--prompt", default="", help="text to continue; default: the beginning of a document")
    parser.add_argument("--tokens", type=int, default=300, help="how many (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="default: %(default)s; 0: no chance")
    parser.add_argument("--top-k", type=int, default=50, help="default: %(default)s; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        if arguments.tokens < 1 or arguments.temperature < 0 or arguments.top_k < 0:
            raise UserError("--tokens must be positive, --temperature and --top-k not negative")
        network, tokenizer = load(arguments.run, arguments.checkpoint)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    prompt = [tokenizer.end, *tokenizer.encode(arguments.prompt).tolist()]
    drawn = continuation(
        network, prompt, arguments.tokens, tokenizer.tokens, arguments.temperature, arguments.top_k, arguments.seed
    )
    print(arguments.prompt + tokenizer.decode(drawn))
    return 0


if __name__ == "__main__":
    sys.exit(main())
