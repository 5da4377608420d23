"""The code of docs/frameworks.md, for tests that run it."""

import re
from pathlib import Path
from typing import Any

import fire

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"


def recipe(containing: str, defines: str, **names: Any) -> Any:
    """What the block that contains a text defines under a name, given the names that it uses."""
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if containing in c]
    space = {"fire": fire, **names}
    exec(code, space)
    return space[defines]
