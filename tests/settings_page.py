"""Makes docs/settings.md from the schemas: `python -m tests.settings_page > docs/settings.md`; a test compares."""

import inspect
import re
import textwrap
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from experiments.common import schema
from experiments.common.config import BaseConfig, compose_domain
from experiments.domains import NAMES, domain

HEAD = """# Settings

`python -m experiments.<domain> key=value ...`. A wrong key, name or value is refused in one line before anything
starts; in a sweep a value out of range fails its own job alone. `python -m experiments.vision --cfg job` prints the
whole configuration.
Defaults are those of `scale=laptop`. *Decides*: settings that can change a number of the whole run are part of its
identity; those of later phases leave phase 0 shared between runs; the others change no number.

The settings of a method are `method.<setting>`; the files in `configs/shared/method/` have them. A method's setting is
refused where another method is chosen, so sweep over it with its method alone.
"""


def descriptions(kind: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each of its attributes."""
    text = inspect.getdoc(kind) or ""
    found: dict[str, str] = {}
    for names, words in re.findall(
        r"^    ([\w, ]+): (.*(?:\n        .*)*)", text.partition("Attributes:")[2], re.MULTILINE
    ):
        for name in names.split(", "):
            found[name] = " ".join(words.split())
    return found


def rows(
    kind: Any, values: Any, prefix: str = "", leave_out: frozenset[str] = frozenset(), around: str = schema.EVERYTHING
) -> list[str]:
    """A line of the table for each setting."""
    lines, meaning, hints = [], descriptions(kind), get_type_hints(kind)
    for item in fields(kind):
        if item.name in leave_out:
            continue
        value = values[item.name] if not OmegaConf.is_missing(values, item.name) else "???"
        if is_dataclass(hints[item.name]):
            decides = item.metadata.get("decides", around)
            lines += rows(hints[item.name], value, f"{prefix}{item.name}.", around=decides)
            continue
        data = item.metadata
        valid = " ".join(f"`{one}`" for one in data.get("choices") or ()) or allowed(data)
        decides = data.get("decides", around) if around == schema.EVERYTHING else around
        decides = {schema.EVERYTHING: "the run", schema.EACH_PHASE: "the run"}.get(decides, decides)
        value = value.get("name", value) if item.name == "method" else value
        default = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        lines.append(f"| `{prefix}{item.name}` | `{default}` | {valid} | {decides} | {meaning[item.name]} |")
    return lines


def allowed(data: Any) -> str:
    """The range of a field in words."""
    low, high, above = (data.get(name) for name in ("low", "high", "above"))
    high = None if high in (schema.COUNT, schema.HUGE) else high  # which nobody comes near
    return ", ".join(f"{sign} {end:.10g}" for sign, end in ((">", above), ("≥", low), ("≤", high)) if end is not None)


def page() -> str:
    """The whole page."""
    table = "| key | default | valid | decides | meaning |\n|---|---|---|---|---|"
    base = frozenset(item.name for item in fields(BaseConfig))
    parts = [HEAD]
    for name in NAMES:
        described = domain(name)
        values = compose_domain(name, described.schema, ["data_dir='~/.cache/fire'"])
        if name == NAMES[0]:
            parts.append(f"## Every domain\n\n{table}\n" + "\n".join(rows(BaseConfig, values)) + "\n")
        own = rows(described.schema, values, leave_out=base)
        parts.append(f"## {name}\n\n{textwrap.dedent(table)}\n" + "\n".join(own) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
