"""What was measured side by side, as a page for people and a JSON file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from redfree.files import write_text
from redfree.records.provenance import environment, now

Rows = Sequence[Mapping[str, str]]


def write_measured(
    out: Path, name: str, text: str, tables: Mapping[str, Rows], data: Mapping[str, Any], **facts: object
) -> dict[str, str]:
    """Writes `<name>.md` and `<name>.json`, which also says when and on what machine.

    Args:
        out: folder.
        name: of both files.
        text: the page; its fields are the tables, the facts, and cpu, cores and torch of the machine.
        tables: rows of each table by its field.
        data: what the JSON file holds, unrounded.
        facts: further fields of the page.

    Returns:
        The tables as Markdown, by their fields.
    """
    env = environment()
    shown = {
        key: str(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)) for key, rows in tables.items()
    }
    machine = {"cpu": env["machine"]["cpu"], "cores": env["cpu_count"], "torch": env["packages"]["torch"]}
    write_text(out / f"{name}.md", text.format(**shown, **machine, **facts))
    whole = {"created_at": now(), "env": env, **data}
    write_text(out / f"{name}.json", json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return shown
