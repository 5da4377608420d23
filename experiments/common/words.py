"""The words of a command line: what Hydra would answer in its own terms, or with a traceback, is one line here."""

import difflib
import itertools
import math
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from experiments.common.config import CONFIGS, BaseConfig, expanded
from experiments.common.errors import UserError

LONGEST = 4096  # characters of a word: as long as a path may be
LONGEST_LINE = 900  # that is printed
MOST_JOBS = 1000  # of a sweep; before the first begins, Hydra composes them all, about ten a second
MULTIRUN = ("-m", "--multirun")
FLAGS = (*MULTIRUN, "-r", "--run", "-h", "--help", "--hydra-help", "--version", "--resolve")
# With a word after them.
CFG = ("-c", "--cfg")
WITH_VALUE = (
    *CFG, "-i", "--info", "-p", "--package", "-sc", "--shell-completion", "-cp", "--config-path", "-cn",
    "--config-name", "-cd", "--config-dir", "--experimental-rerun",
)  # fmt: skip
FOLDERS = ("outputs_dir", "data_dir")
# What OmegaConf says of a value that does not fit -> what we say after the word.
_VALUES = {
    "is not Optional": " is no value: {key} needs one",
    "is not a ListConfig": " is not a list: {key}=[{value}]",
    "could not be converted to Integer": " is not a whole number",
    "could not be converted to Float": " is not a number",
    "is not a valid bool": " is not true or false",
}


def checked(domain: str, words: Sequence[str]) -> list[str]:
    """The words as Hydra takes them: -m comes first, wherever it stood, and ~ is the home folder.

    Raises:
        UserError: a word that cannot be read, or that is no valid option, choice or folder; a sweep of no jobs, or of
            too many.
    """
    words = [_expanded(domain, word) for word in words]
    rest, values = iter(words), dict[str, int]()
    for word in rest:
        if len(word) > LONGEST:
            raise UserError(f"a word of {len(word)} characters is too long: {word[:60]}...")
        name, _, value = word.partition("=")
        if not word.startswith("-"):
            values[name] = _check_override(domain, word)
            if name == "hydra.sweeper.max_batch_size" and (not value.isdecimal() or int(value) < 1):
                raise UserError(f"{word} must be a whole number of at least 1")
            if name == "experiment":
                for key, values_of_recipe in _swept(domain, value).items():
                    values.setdefault(key, _check_override(domain, f"{key}={values_of_recipe}"))
        elif name in WITH_VALUE:
            value = value or next(rest, "")
            if name in CFG and value not in ("job", "hydra", "all"):
                raise UserError(f"{name} {value} is unknown; valid: job, hydra, all")
        elif name not in FLAGS:
            raise UserError(f"unknown option {word}; there are: -m, --cfg job, --info, --help; settings are key=value")
    if "--resolve" in words and not any(word.partition("=")[0] in CFG for word in words):
        raise UserError("--resolve belongs to --cfg job, which prints the configuration")
    if (jobs := math.prod(values.values())) > MOST_JOBS:
        raise UserError(f"the sweep has {jobs} jobs or more, and {MOST_JOBS} is the most; split it")
    return sorted(words, key=lambda word: word not in MULTIRUN)


def _expanded(domain: str, word: str) -> str:
    """A word with ~ replaced, which shells do not do after `outputs_dir=`, and with the choices that a glob stands for,
    which Hydra does not find in a folder that domains share."""
    key, _, value = word.partition("=")
    if key in FOLDERS and value.startswith("~"):
        return f"{key}={expanded(value)}"
    if re.fullmatch(r"glob\(.*\)", value) and (names := _choices(domain, key)):
        with suppress(HydraException, ValueError, TypeError):
            found: Any = OverridesParser.create().parse_override(word).value()
            return f"{key}={','.join(found.filter(names))}" if found.filter(names) else word
    return word


def _check_override(domain: str, word: str) -> int:
    """How many values a word such as seed=0,1 has. UserError unless Hydra can take it."""
    if word.startswith("~"):
        raise UserError(f"{word} would delete what every run needs; give it a value instead")
    key, equals, _ = word.partition("=")
    if not equals:
        raise UserError(f"{word} has no value: {word}=...")
    if not key.strip("+"):
        raise UserError(f"{word} has no key: key=value")
    try:
        override = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError) as error:  # ValueError: a number of thousands of digits
        raise UserError(f"{word} cannot be read; if it is text, quote it: {quoted(word)}") from error
    value: Any = override.value()
    if override.is_sweep_override():
        if not override.is_discrete_sweep():
            raise UserError(f"{word} has no single values; use a list, choice() or range()")
        try:
            each = [] if isinstance(value, Glob) else override.sweep_iterator()  # those with choices are lists by now
            count = sum(1 for _ in itertools.islice(each, MOST_JOBS + 1))
        except (ArithmeticError, ValueError) as error:
            raise UserError(f"{word} cannot be counted") from error
        if count == 0:
            raise UserError(f"the sweep has no jobs: {word}")
        return count
    if override.key_or_group in FOLDERS and str(value or "").strip() == "":
        raise UserError(f"{word} names no folder")
    if (files := _choices(domain, override.key_or_group)) and not isinstance(value, str | list):
        raise UserError(f"{word} chooses nothing; {override.key_or_group} is one of: {', '.join(files)}")
    return 1


def quoted(word: str) -> str:
    """A word with its value quoted, for Hydra and for the shell."""
    key, _, value = word.partition("=")
    inner = f'{key}="{value}"' if "'" in value and '"' not in value else key + "='" + value.replace("'", "\\'") + "'"
    return shlex.quote(inner) if '"' in inner or "\\" in inner or "$" in inner else f'"{inner}"'


def _swept(domain: str, recipe: str) -> dict[str, Any]:
    """What a recipe sweeps over, by itself or by those in its defaults."""
    found: dict[str, Any] = {}
    for path in (CONFIGS / root / "experiment" / f"{recipe}.yaml" for root in (domain, "shared")):
        if path.exists():
            content: Any = OmegaConf.load(path)
            for other in content.get("defaults", []):
                found |= _swept(domain, other) if isinstance(other, str) else {}
            return found | dict(OmegaConf.select(content, "hydra.sweeper.params") or {})
    return found


def _choices(domain: str, group: str) -> list[str]:
    """The names of the files of a group; none if it is no group."""
    folders = [CONFIGS / root / group for root in (domain, "shared")] if group else []
    return sorted({path.stem for folder in folders for path in Path(folder).glob("*.yaml")})


def check_keys(cfg: DictConfig, schema: type[BaseConfig]) -> None:
    """Raise UserError for a key added with `+` that no schema knows."""
    try:
        # As a plain container, because Hydra lets a key added with `+` slip into a typed one.
        OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.to_container(cfg))
    except OmegaConfBaseException as error:
        raise UserError(composition_error(error, schema)) from error


def composition_error(error: Exception, schema: type[BaseConfig]) -> str:
    """What Hydra or OmegaConf say in several lines as one, in our words where they are known."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # Hydra makes a folder for a sweep
        return f"outputs_dir cannot be used: {error}"
    text = one_line(str(error).split("Config search path")[0].split("full_key:")[0])
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        parent, key = cause.parent_node, str(cause.key)
        valid = [str(k) for k in parent] if parent is not None else list(schema.__dataclass_fields__)
        prefix = (cause.full_key or key)[: -len(key)]
        close = difflib.get_close_matches(key, valid, n=1)
        known = f"did you mean {prefix + close[0]!r}?" if close else f"valid: {', '.join(sorted(valid))}"
        return f"unknown key {cause.full_key or key!r}; {known}"
    if "Ambiguous value for argument" in text:
        return "several values for one key make a sweep, which needs -m"
    if word := re.match(r"Error merging override (\S+)", text):
        key, _, value = word[1].lstrip("+").partition("=")
        for theirs, ours in _VALUES.items():
            if theirs in text or theirs in str(cause):
                return word[1] + ours.format(key=key, value=value)
    if isinstance(cause, OmegaConfBaseException) and cause is not error:
        return f"{text}: {one_line(str(cause).split('full_key:')[0])}"
    return text


def one_line(text: str) -> str:
    """Several lines as one, without the middle of a very long one."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
