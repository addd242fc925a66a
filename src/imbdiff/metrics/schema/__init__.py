"""The JSON Schema of metrics.json (draft 2020-12), which stands beside this file and ships with the package."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

SCHEMA_FILE = "metrics.schema.json"


def load_schema() -> dict[str, Any]:
    """The schema of what :func:`imbdiff.metrics.evaluate.evaluate` gives, for any JSON Schema validator.

    It says what each part means, in its descriptions.
    """
    found: dict[str, Any] = json.loads((resources.files(__name__) / SCHEMA_FILE).read_text(encoding="utf-8"))
    return found
