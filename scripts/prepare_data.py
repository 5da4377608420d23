"""Fetch, verify and prepare data: `python -m scripts.prepare_data cifar10`, or
`python -m scripts.prepare_data language data=wikitext2_imdb`, with the same words after `language` as for its
experiments. What is there already is only verified. After an interruption the same command resumes.
"""

import argparse
import os
import sys
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments.common import schema
from experiments.common.config import compose_domain, data_folder
from experiments.common.errors import UserError
from experiments.common.fetch import DEFAULT_DATA, Files, default_data_dir
from experiments.common.launch import start_logging
from experiments.common.words import check_keys, checked, composition_error
from experiments.humanoid import assets
from experiments.language.config import LanguageConfig
from experiments.language.domain import LANGUAGE
from experiments.language.prepare import prepare
from experiments.language.sources import PUBLISHED
from experiments.vision.datasets import DATA_SETS
from scripts import command

FILES: dict[str, Files] = {"humanoid": assets.FILES, **{name: one.files for name, one in DATA_SETS.items()}}


def prepare_language(overrides: list[str], data_dir: Path | None, workers: int) -> str:
    """Token files of both corpora of a configuration."""
    try:
        cfg = compose_domain("language", LanguageConfig, checked("language", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_error(error, LanguageConfig)) from error
    check_keys(cfg, LanguageConfig)
    schema.check(LanguageConfig, cfg)
    LANGUAGE.check(cfg)
    folder = data_dir or data_folder(cfg)
    entries = dict.fromkeys([*cfg.data.first, *cfg.data.second])
    column, published = cfg.data.text_column, cfg.data.split == PUBLISHED
    places = [prepare(entry, cfg.tokenizer, folder, column, workers, published) for entry in entries]
    return f"language: token files in {', '.join(map(str, places))}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m scripts.prepare_data", description=__doc__)
    parser.add_argument("dataset", choices=[*sorted(FILES), "language"])
    parser.add_argument("overrides", nargs="*", help="for language: data=... data.split=... tokenizer=... scale=...")
    parser.add_argument("--data-dir", type=command.folder, help=f"default: FIRE_DATA, else {DEFAULT_DATA}")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: %(default)s)")
    arguments = parser.parse_args()
    start_logging()
    if arguments.workers < 1:
        raise UserError(f"--workers={arguments.workers} must be positive")
    if arguments.dataset == "language":
        print(prepare_language(arguments.overrides, arguments.data_dir, arguments.workers))
        return
    if arguments.overrides:
        raise UserError(f"{arguments.dataset} takes no settings: {' '.join(arguments.overrides)}")
    files = FILES[arguments.dataset]
    folder = files.prepare((arguments.data_dir or default_data_dir()).expanduser())
    print(f"{arguments.dataset}: {len(files.checksums)} files in {folder}, checksums right")


if __name__ == "__main__":
    sys.exit(command.run(main))
