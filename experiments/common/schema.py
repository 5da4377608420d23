"""Settings as dataclass fields that say what values are valid and what they decide.

    steps: list[int] = setting(low=1, decides=LATER_PHASES)

`check` refuses what is out of range before a run starts. `identity` are the settings that can change a number of the
whole run, or of phase 0, which all methods share.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import Field, field, fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.common.errors import UserError

# What a setting decides.
EVERYTHING = "everything"
LATER_PHASES = "later phases"  # no number of phase 0
EACH_PHASE = "each phase"  # a list with a value for each phase: of phase 0 the first
NOTHING = "nothing"  # no number at all
COUNT = 10**12  # more steps, images or tokens than any machine gets through
HUGE = 1e30  # a real number that may be as large as one likes: training that diverges is noticed


def setting(
    default: Any = MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    length: int | None = None,
    choices: Sequence[str] = (),
    decides: str = EVERYTHING,
) -> Any:
    """A field of a configuration.

    Args:
        default: without one the YAML files must give a value.
        low, high, above: the value, or each of a list, lies in [low, high] and above `above`.
        length: how many values a list has.
        choices: the only valid values.
        decides: EVERYTHING, LATER_PHASES, EACH_PHASE or NOTHING.
    """
    metadata = {"low": low, "high": high, "above": above, "length": length, "choices": choices, "decides": decides}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check(schema: Any, cfg: DictConfig, prefix: str = "") -> None:
    """Raise UserError for the first value that its field does not allow."""
    for key, item, kind in _fields(schema):
        if OmegaConf.is_missing(cfg, key) or cfg[key] is None:
            continue
        if is_dataclass(kind):
            check(kind, cfg[key], f"{prefix}{key}.")
            continue
        _check_value(prefix + key, cfg[key], item)


def _check_value(key: str, value: Any, item: Field) -> None:
    choices, low, high, above = (item.metadata.get(name) for name in ("choices", "low", "high", "above"))
    # `compile=true` arrives as the word "True"; nothing else may be written in another way.
    if choices and (value.lower() if value in ("True", "False") else value) not in choices:
        raise UserError(f"{key}={value} is unknown; valid: {', '.join(choices)}")
    numbers = list(value) if OmegaConf.is_list(value) else [value]
    if (length := item.metadata.get("length")) and len(numbers) != length:
        raise UserError(f"{key}={value} must be {length} numbers")
    if low is None and high is None and above is None:
        return
    low, high, above = (-math.inf if low is None else low), (math.inf if high is None else high), above
    for number in numbers:
        if not isinstance(number, int | float):
            raise UserError(f"{key}={value} must be {'numbers' if OmegaConf.is_list(value) else 'a number'}")
        if not (low <= number <= high and math.isfinite(number) and (above is None or number > above)):
            raise UserError(f"{key}={value} must {_range(low, high, above)}")


def _range(low: float, high: float, above: float | None) -> str:
    """The valid range in words."""
    if math.isfinite(high):
        return f"lie in {'[' if above is None else '('}{low if above is None else above:.10g}, {high:.10g}]"
    if above is not None:
        return "be positive" if above == 0 else f"be above {above:.10g}"
    return "not be negative" if low == 0 else f"be at least {low:.10g}"


def identity(schema: Any, values: dict[str, Any], phase_0: bool = False) -> dict[str, Any]:
    """Of the plain `values` of a configuration, those that can change a number of the run or, with `phase_0`, of phase
    0. A method is none of the latter; one that acts in phase 0 is added by the caller."""
    kept = dict(values)  # with keys that are no settings, such as versions
    for key, item, kind in _fields(schema):
        decides = item.metadata.get("decides", EVERYTHING)
        if key not in values:
            continue
        if decides == NOTHING or (phase_0 and decides == LATER_PHASES):
            del kept[key]
        elif is_dataclass(kind) and isinstance(values[key], dict):
            kept[key] = identity(kind, values[key], phase_0)
        elif phase_0 and decides == EACH_PHASE:
            kept[key] = values[key][0]
    return kept


def digest(values: dict[str, Any]) -> str:
    """An identity as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def later_keys(schema: Any, prefix: str = "") -> list[str]:
    """The dotted keys that decide no number of phase 0: jobs that differ in these alone share it."""
    found = []
    for key, item, kind in _fields(schema):
        if item.metadata.get("decides") in (LATER_PHASES, NOTHING):
            found.append(prefix + key)
        elif is_dataclass(kind):
            found += later_keys(kind, f"{prefix}{key}.")
    return found


def _fields(schema: Any) -> Iterator[tuple[str, Field, Any]]:
    hints = get_type_hints(schema)
    return ((item.name, item, hints[item.name]) for item in fields(schema))
