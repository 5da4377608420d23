"""Fetch, verify and prepare data: `python -m scripts.prepare_data cifar10`, or
`python -m scripts.prepare_data language data=wikitext2_imdb`, with the same words after `language` as for its
experiments. What is done already is verified and not done again; after an interruption the same command continues.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sized
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments.common.config import compose_domain, data_folder
from experiments.common.errors import UserError
from experiments.common.fetch import DEFAULT_DATA, default_data_dir
from experiments.common.launch import composition_error
from experiments.humanoid import assets
from experiments.language import protocol
from experiments.language.config import LanguageConfig
from experiments.language.prepare import prepare
from experiments.vision.data import prepare_cifar10
from scripts import command

DATASETS: dict[str, Callable[[Path], Sized]] = {"cifar10": prepare_cifar10, "humanoid": assets.prepare}


def prepare_language(overrides: list[str], data_dir: Path | None, workers: int) -> str:
    """Token files of both corpora of a configuration."""
    try:
        cfg = compose_domain("language", LanguageConfig, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_error(error, LanguageConfig)) from error
    protocol.check(cfg)
    folder = data_dir or data_folder(cfg)
    entries = dict.fromkeys([*cfg.data.first, *cfg.data.second])
    places = [prepare(entry, cfg.tokenizer, folder, cfg.data.text_column, workers) for entry in entries]
    return f"language: token files in {', '.join(map(str, places))}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_data", description=__doc__)
    parser.add_argument("dataset", choices=[*sorted(DATASETS), "language"])
    parser.add_argument("overrides", nargs="*", help="for language: data=... tokenizer=... scale=...")
    parser.add_argument("--data-dir", type=Path, help=f"default: FIRE_DATA, else {DEFAULT_DATA}")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: %(default)s)")
    arguments = parser.parse_args()
    logger = logging.getLogger("fire")
    logger.setLevel(logging.INFO)
    logger.handlers = [logging.StreamHandler(sys.stdout)]
    if arguments.workers < 1:
        raise UserError(f"--workers={arguments.workers} must be positive")
    if arguments.dataset == "language":
        print(prepare_language(arguments.overrides, arguments.data_dir, arguments.workers))
        return
    if arguments.overrides:
        raise UserError(f"{arguments.dataset} takes no settings: {' '.join(arguments.overrides)}")
    folder = (arguments.data_dir or default_data_dir()).expanduser()
    print(f"{arguments.dataset}: {len(DATASETS[arguments.dataset](folder))} files in {folder}, checksums right")


if __name__ == "__main__":
    sys.exit(command.run(main))
