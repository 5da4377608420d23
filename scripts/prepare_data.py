"""Fetch, verify and prepare data: `python -m scripts.prepare_data cifar10`, or
`python -m scripts.prepare_data language data=wikitext2_imdb`, with the same words after `language` as for its
experiments. What is there already is only verified. After an interruption the same command resumes.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments.common.config import compose_domain, data_folder
from experiments.common.errors import UserError
from experiments.common.fetch import DEFAULT_DATA, Files, default_data_dir
from experiments.common.launch import composition_error
from experiments.humanoid import assets
from experiments.language import protocol
from experiments.language.config import LanguageConfig
from experiments.language.prepare import prepare
from experiments.vision.datasets import DATA_SETS

FILES: dict[str, Files] = {"humanoid": assets.FILES, **{name: one.files for name, one in DATA_SETS.items()}}


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


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_data", description=__doc__)
    parser.add_argument("dataset", choices=[*sorted(FILES), "language"])
    parser.add_argument("overrides", nargs="*", help="for language: data=... tokenizer=... scale=...")
    parser.add_argument("--data-dir", type=Path, help=f"default: FIRE_DATA, else {DEFAULT_DATA}")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: %(default)s)")
    arguments = parser.parse_args()
    logger = logging.getLogger("fire")
    logger.setLevel(logging.INFO)
    logger.handlers = [logging.StreamHandler(sys.stdout)]
    try:
        if arguments.workers < 1:
            raise UserError(f"--workers={arguments.workers} must be positive")
        if arguments.dataset == "language":
            done = prepare_language(arguments.overrides, arguments.data_dir, arguments.workers)
        elif arguments.overrides:
            raise UserError(f"{arguments.dataset} takes no settings: {' '.join(arguments.overrides)}")
        else:
            folder = (arguments.data_dir or default_data_dir()).expanduser()
            files = FILES[arguments.dataset]
            done = f"{arguments.dataset}: {len(files.checksums)} files in {files.prepare(folder)}, checksums right"
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    print(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
