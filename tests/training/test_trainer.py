"""The loop: exact continuation, the global batch, averaged weights, and what stops it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from imbdiff.config import TrainConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import DDPM
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.requests import Answer, Request
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.errors import ConfigError, NonFiniteLossError, RunError
from imbdiff.runtime.log import JsonLog, read_jsonl
from imbdiff.training import trainer as trainer_module
from imbdiff.training.loop import TrainingFiles
from imbdiff.training.parts import Part
from imbdiff.training.step import TrainingStep
from imbdiff.training.trainer import Trainer
from imbdiff.training.update import learning_rate

CONFIG = TrainConfig(images=16 * 24, batch_size=16, lr=1e-3, checkpoint_images=16 * 6, preview_images=16 * 5)


@pytest.fixture(autouse=True, scope="module")
def every_second_step_is_logged() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "LOG_LINES", 12)
        yield


def data() -> ImageSet:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (20, 8, 3)).astype(np.int64)
    images = generator.integers(0, 256, (len(labels), 4, 4, 1)).astype(np.uint8)
    return ImageSet(images, labels, ("a", "b", "c"))


def trainer(folder: Path | None, config: TrainConfig = CONFIG, **options: object) -> Trainer:
    images = data()
    model = build_model("mlp", DDPM(), (1, 4, 4), images.stats)
    objectives = options.pop("objectives", None) or [Denoising(), ClassBalancing()]
    parts = options.pop("parts", [Part(distribution="tempered")])
    return Trainer(
        step=TrainingStep({"model": model}, objectives),  # type: ignore[arg-type]
        data=images,
        groups=Groups.by_quantile(images.stats),
        parts=parts,  # type: ignore[arg-type]
        config=config,
        device="cpu",
        files=TrainingFiles()
        if folder is None
        else TrainingFiles(CheckpointStore(folder / "checkpoints"), JsonLog(folder / "log.jsonl"), "one"),
        quiet=True,
        **options,  # type: ignore[arg-type]
    )


def same(a: DiffusionModel, b: DiffusionModel) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def rows(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(folder / "log.jsonl")]


class StopError(Exception):
    pass


def stop_at(images: int):
    def preview(model: DiffusionModel, seen: int) -> None:
        if seen >= images:
            raise StopError

    return preview


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[DiffusionModel, Path, Trainer]:
    """A training from start to end: (averaged model, folder, the trainer)."""
    folder = tmp_path_factory.mktemp("whole")
    job = trainer(folder)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    model = job.run()
    assert torch.equal(before, torch.random.get_rng_state()), "it reads or moves the global generator"
    assert isinstance(model, DiffusionModel)
    return model, folder, job


Whole = tuple[DiffusionModel, Path, Trainer]


@pytest.mark.parametrize("stop", [16 * 5, 16 * 20])
def test_a_stopped_run_continues_bit_for_bit_with_the_same_log(tmp_path: Path, stop: int, whole: Whole) -> None:
    with pytest.raises(StopError):
        trainer(tmp_path, on_preview=stop_at(stop)).run()
    assert same(whole[0], trainer(tmp_path).run())
    assert rows(whole[1]) == rows(tmp_path)
    assert len(rows(tmp_path)) == 12


def test_a_finished_run_is_read_back_and_not_trained_again(whole: Whole) -> None:
    model, folder, _ = whole
    assert same(model, trainer(folder, objectives=[Explodes()]).run())  # would fail at once if it took a step
    other = trainer(folder)
    other.files = replace(other.files, identity="two")
    with pytest.raises(RunError, match="other data or options"):
        other.run()
    names = [p.name for p in CheckpointStore(folder / "checkpoints").paths()]
    assert names == ["ckpt-000000000288", "ckpt-000000000384"], "old ones are removed but two"


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(tmp_path: Path, whole: Whole) -> None:
    with pytest.raises(StopError):
        trainer(tmp_path, on_preview=stop_at(16 * 15)).run()
    newest = CheckpointStore(tmp_path / "checkpoints").paths()[-1]
    state = bytearray((newest / "state.safetensors").read_bytes())
    state[-100] ^= 1
    (newest / "state.safetensors").write_bytes(bytes(state))
    said: list[str] = []
    resumed = trainer(tmp_path, notify=said.append)
    resumed.quiet = False
    assert same(whole[0], resumed.run())
    assert newest.name in said[0]
    assert "damaged" in said[0]
    assert "continuing after 96 images" in said[1]


def test_precision_is_said_where_it_was_chosen_and_where_it_changes(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    said: list[str] = []

    def run(units: bool, config: TrainConfig = CONFIG, **options: object) -> Trainer:
        said.clear()
        monkeypatch.setattr("imbdiff.runtime.device.BF16_FROM", 1)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": units}, raising=False)
        made = trainer(tmp_path, config, notify=said.append, **options)
        made.quiet = False
        made.run()
        return made

    with pytest.raises(StopError):
        run(True, on_preview=stop_at(16 * 10))
    assert "bfloat16" in said[0]
    run(False)
    assert said == ["continuing after 96 images, in fp32 what was trained in bf16 so far"]
    shutil.rmtree(tmp_path / "checkpoints")
    run(True, replace(CONFIG, precision="fp32"))
    assert said == []


def test_the_averaged_weights_move_and_differ_from_the_trained_ones(whole: Whole) -> None:
    averaged, _, job = whole
    start = build_model("mlp", DDPM(), (1, 4, 4), data().stats)
    trained = job.step.networks["model"]
    assert not same(averaged, start)
    assert not same(averaged, trained)  # type: ignore[arg-type]
    distance = [
        sum(
            float((x - y).square().sum())
            for x, y in zip(m.state_dict().values(), start.state_dict().values(), strict=True)
        )
        for m in (averaged, trained)
    ]
    assert distance[0] < distance[1], "an average over the run lags behind the last weights"


def test_previews_do_not_change_training(tmp_path: Path, whole: Whole) -> None:
    seen: list[int] = []

    def preview(model: DiffusionModel, images: int) -> None:
        seen.append(images)
        torch.rand(100)  # what a preview draws does not matter either
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()

    assert same(trainer(tmp_path, on_preview=preview).run(), whole[0])
    assert seen == [80, 160, 240, 320, 384]


def test_accumulated_micro_batches_equal_the_whole_batch(whole: Whole) -> None:
    pieces = trainer(None, replace(CONFIG, accumulate=4)).run()
    for x, y in zip(whole[0].state_dict().values(), pieces.state_dict().values(), strict=True):
        assert torch.allclose(x, y, rtol=1e-4, atol=1e-6)


class Explodes(Objective):
    """Becomes infinite at one step."""

    name = "explodes"

    def __init__(self, step: int = 0) -> None:
        super().__init__()
        self.left = step

    def requests(self, batch):  # type: ignore[no-untyped-def]
        return [Request("given")]

    def terms(self, batch, answers: list[Answer]):  # type: ignore[no-untyped-def,override]
        self.left -= 1
        factor = float("inf") if self.left < 0 else 1.0
        return {"term": answers[0].pred.square().flatten(1).mean(1) * factor}


def test_a_loss_that_is_not_finite_stops_before_the_update_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    job = trainer(tmp_path, objectives=[Denoising(), Explodes(8)])
    good: list[torch.Tensor] = []
    step = job.step.forward

    def remember(batches):  # type: ignore[no-untyped-def]
        good[:] = [p.detach().clone() for p in job.step.parameters()]
        return step(batches)

    job.step.forward = remember  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match=r"step 9: .*explodes/term.*ckpt-000000000096 is kept") as error:
        job.run()
    assert "train.lr" in error.value.remedy
    assert all(torch.equal(a, b) for a, b in zip(good, job.step.parameters(), strict=True))
    assert CheckpointStore(tmp_path / "checkpoints").latest() is not None


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a multiple"):
        TrainConfig(batch_size=10, accumulate=4)
    with pytest.raises(ConfigError, match="class groups of part 'pairs'"):
        trainer(None, replace(CONFIG, accumulate=2), parts=[Part(), Part("pairs", groups=3, group_size=3)]).run()


def test_a_part_of_non_head_classes_holds_only_those_and_shares_one_time_per_group(tmp_path: Path) -> None:
    seen: list = []

    class Looks(Denoising):
        name = "looks"

        def terms(self, batch, answers):  # type: ignore[no-untyped-def]
            seen.append(batch)
            return super().terms(batch, answers)

    parts = [Part(), Part("pairs", groups=2, group_size=3, of="non-head")]
    trainer(None, objectives=[Denoising(), Looks(part="pairs")], parts=parts).run()
    for batch in seen:
        assert len(batch) == 6
        assert set(batch.labels.tolist()) <= {1, 2}
        for g in (0, 1):
            mine = batch.group == g
            assert int(mine.sum()) == 3
            assert len(set(batch.t[mine].tolist())) == 1
            assert len(set(batch.labels[mine].tolist())) == 1
    assert len({tuple(b.t.tolist()) for b in seen}) > 20


def test_images_are_mirrored_only_when_asked(whole: Whole) -> None:
    assert not same(trainer(None, augmentation=Augmentation("mirror")).run(), whole[0])


def test_learning_rate_warms_up_then_stays_or_falls() -> None:
    config = TrainConfig(images=64_000, batch_size=64, lr=1.0 - 1e-9, warmup_images=3_200)
    rates = [learning_rate(config, s) for s in range(1000)]
    assert rates[0] == pytest.approx(1 / 50)
    assert rates[24] == pytest.approx(0.5)
    assert set(rates[50:]) == {config.lr}
    cosine = [learning_rate(replace(config, schedule="cosine"), s) for s in range(1000)]
    assert cosine[525] == pytest.approx(0.5, abs=1e-3)
    assert cosine[-1] < 1e-4
    assert all(a >= b for a, b in itertools.pairwise(cosine[49:]))
    short = TrainConfig(images=640, batch_size=64, warmup_images=64_000)
    assert learning_rate(short, 1) == short.lr, "the warm-up is at most a tenth of the run"
