"""The Markdown table of a benchmark's rows."""

from collections.abc import Mapping

import pandas as pd

# Title of a column: which column of the rows it shows, in which format, multiplied by what.
Columns = Mapping[str, tuple[str, str, float]]


def table(rows: pd.DataFrame, columns: Columns) -> str:
    """A row for each loop. The first column's range and number of turns follow it; what is not known is left out."""
    shown = {"": rows.case.where(~rows.case.duplicated(), ""), "loop": rows.loop}
    known = {title: column for title, column in columns.items() if column[0] in rows}
    for number, (title, (name, form, factor)) in enumerate(known.items()):
        shown[title] = cells(rows[name] * factor, form)
        if number == 0:
            low, high = (cells(rows[f"{name}_{end}"] * factor, form) for end in ("min", "max"))
            shown["range"] = (low + " to " + high).where((rows.repeats > 1) & (low != ""), "")
            shown["turns"] = cells(rows.repeats, "{:.0f}")
    return pd.DataFrame(shown).to_markdown(index=False, disable_numparse=True)


def rates(unit: str) -> Columns:
    """The usual columns: work a second, and how many times as fast the first loop is."""
    return {f"{unit} / s": ("per_second", "{:,.1f}", 1), "ours / this": ("over_first", "{:.2f}", 1)}


def cells(values: pd.Series, form: str) -> pd.Series:
    """Numbers as text; empty where there is none."""
    return values.map(form.format).where(values.notna(), "")
