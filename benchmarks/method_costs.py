"""What a training image costs with each method, against DDPM: in forward passes, operations and seconds, in one run.

    python benchmarks/method_costs.py

Every side is one step of a method's phase on digits: requests, passes, losses, backward; without the optimizer, which
is the same for all. Sides alternate. A method of several phases costs the sum over its phases, by the share of the
images that each sees.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from harness import Side, compare, write_result
from imbdiff import preset
from imbdiff.config import override
from imbdiff.data.splits import Prepared
from imbdiff.methods import METHODS, method_of
from imbdiff.pipeline import training
from imbdiff.recipe import Phase
from imbdiff.training.parts import Batches
from imbdiff.training.step import TrainingStep


def side(name: str, method: str, phase: Phase, prepared: Prepared, batch: int) -> tuple[Side, TrainingStep]:
    """A phase's step on one batch, and its parts."""
    values = {"method": method, "train.batch_size": batch, "device": "cpu"}
    config = override(preset("demo"), values)
    earlier = {n: training.new_model(prepared, config) for n in {phase.start, *phase.frozen} if n}
    step = training.build_step(phase, prepared, config, earlier)
    made = Batches(
        step, phase.parts, prepared.train, prepared.groups, training.phase_config(phase, config),
        device=torch.device("cpu"), geometric=training.geometric(phase, method_of(config)),
    )  # fmt: skip
    batches = made(0)

    def run() -> None:
        step(batches)["loss"].backward()
        step.zero_grad()

    return Side(name, run), step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    prepared = training.prepare_data("digits", override(preset("demo"), {}).data)
    sides, steps, of = [], {}, {}
    for method in dict.fromkeys(["ddpm", *given.methods]):
        phases = METHODS[method].phases
        for phase in phases:
            name = method if len(phases) == 1 else f"{method}: {phase.name}"
            one, steps[name] = side(name, method, phase, prepared, given.batch)
            sides.append(one)
            of[name] = (method, phase)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        compared = compare(sides, repeats=given.repeats, memory_repeats=0)
    base = compared["sides"][0]
    rows: dict[str, dict[str, Any]] = {}
    cpu = {"ddpm": 1.0} | {ratio["name"]: ratio["cpu"]["median"] for ratio in compared["ratios"]}
    wall = {"ddpm": 1.0} | {ratio["name"]: ratio["wall"]["median"] for ratio in compared["ratios"]}
    for found in compared["sides"]:
        name = found["name"]
        method, phase = of[name]
        row = rows.setdefault(method, {"method": method, "stated passes": METHODS[method].cost, "passes": 0.0,
                                       "operations": 0.0, "CPU seconds": 0.0, "wall seconds": 0.0})  # fmt: skip
        row["passes"] += phase.share * steps[name].usage.rows / given.batch
        row["operations"] += phase.share * found["flop"] / base["flop"]
        row["CPU seconds"] += phase.share * cpu[name]
        row["wall seconds"] += phase.share * wall[name]
    for row in rows.values():
        print(f"{row['method']:24s} {row['passes']:5.2f} passes, {row['operations']:5.2f} operations, "
              f"{row['CPU seconds']:5.2f} CPU, {row['wall seconds']:5.2f} wall, x ddpm", flush=True)  # fmt: skip
    write_result(
        "method_costs", {"ratios to ddpm": list(rows.values()), "every side": compared["sides"]},
        config=vars(given), notes=NOTES,
    )  # fmt: skip


NOTES = """Ratios to DDPM of one training image, all sides alternating in one run. "passes" counts rows of network
evaluations, also those without gradient and those that stop after the middle block; "operations" are floating-point
operations as torch counts them; seconds are medians over neighbouring runs."""

if __name__ == "__main__":
    main()
