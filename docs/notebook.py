"""Writes examples/first_steps.ipynb, with its output, from the first example: python docs/notebook.py"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "plot_1_first_steps.py"


def markdown(text: str) -> str:
    """The little of reStructuredText that the examples use."""
    text = re.sub(r"^(.+)\n=+$", r"# \1", text, flags=re.M)
    text = re.sub(r"^(.+)\n-+$", r"## \1", text, flags=re.M)
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`")


def cells(script: str) -> list[tuple[str, str]]:
    """(text, code) of each block; the first has no code."""
    _, head, rest = script.split('"""', 2)
    found = [(markdown(head.strip()), "")]
    for block in re.split(r"^# %%\n", rest, flags=re.M)[1:]:
        text = re.match(r"(?:#.*\n)*", block)[0]  # type: ignore[index]
        found.append((markdown(re.sub(r"^# ?", "", text, flags=re.M).strip()), block[len(text) :].strip()))
    return found


def made() -> dict[str, Any]:
    """The notebook, executed."""
    os.environ["MPLBACKEND"] = "agg"
    import matplotlib.pyplot as plt

    written: list[dict[str, Any]] = []
    names: dict[str, Any] = {}
    for text, code in cells(SCRIPT.read_text("utf-8")):
        if text:
            written.append({"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)})
        if not code:
            continue
        plt.show = lambda: None
        with redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        outputs: list[dict[str, Any]] = []
        if printed.getvalue():
            lines = printed.getvalue().splitlines(keepends=True)
            outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
        for number in plt.get_fignums():
            plt.figure(number).savefig(png := io.BytesIO(), format="png", dpi=80, bbox_inches="tight")
            plt.close(number)
            data = {"image/png": base64.b64encode(png.getvalue()).decode()}
            outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
        count = 1 + sum(cell["cell_type"] == "code" for cell in written)
        source = code.splitlines(keepends=True)
        cell = {"cell_type": "code", "metadata": {}, "execution_count": count, "source": source, "outputs": outputs}
        written.append(cell)
    for i, cell in enumerate(written):
        cell["id"] = f"cell-{i}"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": written}


if __name__ == "__main__":
    (EXAMPLES / "first_steps.ipynb").write_text(json.dumps(made(), indent=1) + "\n", "utf-8")
