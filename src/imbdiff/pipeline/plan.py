"""Before the expensive part: what is refused, and what a run would do, its memory and time from a measured probe."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from imbdiff.config import DataConfig, RunConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.decode import resolve
from imbdiff.data.imageset import Rows
from imbdiff.data.latents import lacking
from imbdiff.data.names import named
from imbdiff.data.source import Source
from imbdiff.data.splits import Prepared
from imbdiff.data.stats import Groups
from imbdiff.diffusion.backbones import BACKBONES
from imbdiff.diffusion.codec import Codec
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidances import guidance_text
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.schedulers import make_scheduler
from imbdiff.methods import method_of
from imbdiff.metrics.extractors import EXTRACTORS
from imbdiff.metrics.measures import choose_measures
from imbdiff.pipeline import finetuning, training
from imbdiff.pipeline.curation import candidates, chooses
from imbdiff.pipeline.recognising import classifier_arms, classifier_use, networks_of, plan_of
from imbdiff.pipeline.sampling import sampling
from imbdiff.pipeline.strategy import images_to_draw, parse_strategy
from imbdiff.pipeline.training import check_phases, init_folder, new_model
from imbdiff.pipeline.variations import in_words
from imbdiff.pipeline.watch import PER_CLASS, preview_sampling, previewed
from imbdiff.presets import choose_preset, preset
from imbdiff.recipe import Phase
from imbdiff.recognition.arms import Arm
from imbdiff.recognition.comparison import check_networks
from imbdiff.recognition.curation import parse_policy
from imbdiff.recognition.jobs import seconds_per_classifier
from imbdiff.recognition.networks import check_network
from imbdiff.runtime.device import resolve_device, resolve_precision
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.log import check_trackers
from imbdiff.runtime.progress import duration
from imbdiff.runtime.tables import lookup
from imbdiff.training.parts import Batches
from imbdiff.training.trainer import preview_every


def check_options(config: RunConfig, *, training: bool = True) -> None:
    """Refuses options that no data could make right, before any data is read.

    Raises:
        ConfigError: an unknown method, backbone, classifier, measure or strategy, a sampler that does not fit the
            process, a device that is not there, options that have no effect on the method, or no model to start from.
    """
    method = method_of(config)
    resolve_device(config.device)
    finetuning.check(config)
    check_trackers(config.track)
    how = sampling(config)
    make_scheduler(how.sampler, PROCESSES[config.model.process], how.steps)
    if config.model.backbone != "auto":
        lookup("backbones", BACKBONES, config.model.backbone, kind=tuple)
    choose_measures(config.evaluate.measures)
    check_network(config.classify.network)
    classifier_arms(config.classify)
    parse_strategy(config.sample.strategy)
    parse_policy(config.curate.policy)
    for name in config.evaluate.extractors:
        if name.partition(":")[0] not in EXTRACTORS:
            lookup("extractors", EXTRACTORS, name)
    if not training:
        return
    if config.train.watch_images and method.target.label_dropout == 1:
        raise ConfigError(
            f"--train.watch_images: {config.method} trains its model without labels and its guide last: what is "
            "sampled while training has nothing to do with the classes asked for",
            "leave --train.watch_images out",
        )
    if config.model.init is None and config.model.pretrained is None and method.init == "required":
        raise ConfigError(
            f"the method {config.method} starts from a trained model", "give its folder as --model.init RUN/model"
        )
    if config.model.init is not None:
        init_folder(config.model.init)
        for name, value in (
            ("model.backbone", config.model.backbone != "auto"),
            ("model.dropout", config.model.dropout is not None),
            ("codec.factor", config.codec.factor is not None),
            ("codec.latent_channels", config.codec.latent_channels is not None),
            ("codec.weights", config.codec.weights is not None),
        ):
            if value:
                raise ConfigError(f"--{name} has no effect on a model that is there already", "leave it out")


def check_fit(
    prepared: Prepared, config: RunConfig, *, training: bool = True, classifying: bool = True, world: int = 1
) -> None:
    """Refuses options that do not fit the data, before the expensive part: everything that will be needed is built.

    Args:
        training, classifying: these stages are to come.
        world: processes.

    Raises:
        ImbdiffError: naming the option.
    """
    wanted = images_to_draw(config.sample.strategy, prepared.stats)
    how = sampling(config)
    how.check(prepared.stats, prepared.groups)
    if training:
        model = new_model(prepared, config)
        make_scheduler(how.sampler, model.process, how.steps, model.codec.bound)
        check_phases(prepared, config, world=world)
    some = sum(wanted) > 0
    none = classifier_use(config.classify).lacking(wanted, prepared.stats.names)
    if classifying and none and some:
        raise ConfigError(
            f"--sample.strategy {config.sample.strategy} adds no image of {named(none)}: the prior per domain takes "
            "synthetic images of all classes alike",
            "use --sample.strategy equal (of a run that is there: imbdiff sample RUN --sample.strategy equal "
            "--replace), or --classify.synthetic_prior effective",
        )
    # with the classifiers that choose, judge and measure: by cross-entropy or balanced softmax, of one kind of images
    arms = [arm for arm in (classifier_arms(config.classify) if classifying else ()) if some or not arm.needs_synthetic]
    check_networks(prepared, plan_of(prepared, config), [Arm("ce"), *arms])


def against_balanced(prepared: Prepared) -> bool:
    """Whether images are measured against the balanced set too, the literature's reference: for benchmarks."""
    return prepared.pool is not None and prepared.manifest["source"]["kind"] == "benchmark"


def default_preset(side: int, device: str = "auto") -> str:
    """The preset for images of that side where the user names none."""
    return choose_preset(side, resolve_device(device).type)


def default_config(source: Source, data: DataConfig | None = None, device: str = "auto") -> RunConfig:
    """The preset for a source where the user names none: by image size, and by whether there is a GPU."""
    data, sizes = data or DataConfig(), source.sizes()
    target = resolve(sizes, data.size, data.resize, str(source.name))[0] if sizes else None
    return preset(default_preset(max(target.shape) if target else 64, device))


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        rows: (what, text) pairs to print.
        seconds: estimated time in all.
    """

    rows: tuple[tuple[str, str], ...]
    seconds: float

    def text(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows)


def make_plan(prepared: Prepared, config: RunConfig, source: str) -> Plan:
    """Measures two training steps, one sampling step and classifier steps, and extrapolates. Writes nothing."""
    device = resolve_device(config.device)
    stats = prepared.stats
    counts = images_to_draw(config.sample.strategy, stats)
    sampled = sum(candidates(counts, config))
    method, how = method_of(config), sampling(config)
    model = training.new_model(prepared, config)
    parameters = model.num_parameters
    encoding, encode_seconds = _probe_encoding(model.codec, prepared, config, device)
    train_seconds, memory = 0.0, 0.0
    for phase in method.phases:
        second, used = _probe_training(phase, prepared, config, device)
        options = training.phase_config(phase, config)
        train_seconds += second * options.steps * options.batch_size
        memory = max(memory, used)
        if phase.gives == "guide" and phase.make is not None:  # an untrained one costs as much
            model.guide = phase.make(model, 0).eval()
    seen = config.train.steps * config.train.batch_size
    per_image = probe_sampling(model, config, device, prepared.groups)
    sample_seconds = per_image * sampled
    every, steps = preview_every(training.phase_config(method.target, config)), config.train.steps
    previews = -(-steps // every) if every else 0
    classes = len(previewed(stats, config))
    preview_seconds = previews * classes * PER_CLASS * per_image * preview_sampling(config, classes).steps / how.steps
    one = seconds_per_classifier(prepared.train, plan_of(prepared, config), str(device))
    arm_seconds = one * config.classify.seeds
    networks = networks_of([a for a in classifier_arms(config.classify) if sum(counts) > 0 or not a.needs_synthetic])
    classify_seconds = arm_seconds * networks
    # two more trainings per seed: on synthetic images alone and, for comparison, on real ones
    evaluate_seconds = arm_seconds * 2 if sum(counts) and config.evaluate.cas else 0.0
    curating = chooses(config) and sampled > 0
    # one training of the working classifier
    curate_seconds = one if curating and config.curate.policy != "none" else 0.0
    total = encode_seconds + train_seconds + preview_seconds + sample_seconds
    total += curate_seconds + evaluate_seconds + classify_seconds
    shown = sorted(range(stats.num_classes), key=lambda k: -stats.counts[k])
    listed = [f"{stats.names[k][:24]} {stats.counts[k]}+{counts[k]}" for k in shown[:12]]
    if len(shown) > 12:
        listed.append(f"and {len(shown) - 12} more classes")
    shape = prepared.train.shape
    begun = in_words(how.start, how.sources, how.strength)
    guided = ", ".join(filter(None, (guidance_text(how.guidance, how.constants), begun)))
    found = f"{stats.total} training images, {stats.num_classes} classes, IF {stats.imbalance_factor:.4g}"
    rows = {
        "source": f"{source}: {found}",
        "split": prepared.parts,
        "images": f"{'x'.join(map(str, shape))} (height x width x channels)",
        "groups": prepared.groups.rule,
        "preset": config.preset,
        "method": f"{config.method}: {method.idea}",
        "codec": training.codec_text(model.codec),
        "model": f"{training.model_text(config, model)}, {parameters:,} parameters",
        "encode": encoding,
        "train": f"{seen:,} images in batches of {config.train.batch_size}: {duration(train_seconds)}",
        "previews": f"{previews} of {classes} classes: {duration(preview_seconds)} (--train.preview_images 0: none)",
        "sample": f"{sampled:,} images, {how.sampler}, {how.steps} steps, {guided}: {duration(sample_seconds)}",
        "curate": f"at most {sum(counts):,} of {sampled:,}, {config.curate.policy}: {duration(curate_seconds)}",
        "per class": ", ".join(listed) + " (real+synthetic)",
        "evaluate": f"about {duration(evaluate_seconds)} for classifiers; distances on top: seconds for small features",
        "classify": f"{config.classify.seeds} seeds x {networks} networks: {duration(classify_seconds)}",
        "memory": f"{memory / 2**30:.1f} GiB at the peak of training ({device})",
        "in all": f"about {duration(total)} on {device}, from a measured probe; a minute or so of measuring on top",
    }
    shown_if = {"codec": model.codec.name != "identity", "encode": encoding, "curate": curating, "previews": previews}
    for name in [name for name, there in shown_if.items() if not there]:
        del rows[name]
    return Plan(tuple(rows.items()), total)


def _probe_encoding(codec: Codec, prepared: Prepared, config: RunConfig, device: torch.device) -> tuple[str, float]:
    """What encoding the training images once takes, as text and in seconds; empty where it is done at every step."""
    if codec.symmetries == "any":
        return "", 0.0
    changes, chunk = Augmentation(training.symmetry_of(prepared, config)), codec.chunk
    left, whole = lacking(prepared.train, codec, changes)
    images = torch.zeros((chunk, *codec.image), dtype=torch.uint8, device=device)
    codec.store(images)
    began = time.perf_counter()
    codec.store(images)
    seconds = (time.perf_counter() - began) / chunk * left
    size = whole * math.prod(codec.stored) * 2 / 2**30
    there = f", {whole - left:,} of them are there" if left < whole else ""
    times = (
        f"{whole // len(prepared.train)} times, as is and as --data.augment changes it"
        if whole > len(prepared.train)
        else "once"
    )
    return f"each training image {times}: {whole:,} latents, {size:.2g} GiB{there}: {duration(seconds)}", seconds


def _probe_training(phase: Phase, prepared: Prepared, config: RunConfig, device: torch.device) -> tuple[float, float]:
    """Seconds per image of one phase, and peak memory in bytes."""
    earlier = {name: training.new_model(prepared, config) for name in {phase.start, *phase.frozen} if name}
    step = training.build_step(phase, prepared, config, earlier, fitted=False).to(device)
    codec: Any = step.networks["model"].codec
    k, h, w = codec.stored
    variants = Augmentation(training.symmetry_of(prepared, config)).variants(codec.image)
    blank = Rows([np.zeros((1, h, w, k), np.float16)], np.zeros(len(prepared.train) * variants, np.int64))
    batches = Batches(
        step, phase.parts, prepared.train, prepared.groups, config.train, device=device, stored=(blank, variants),
        geometric=training.geometric(phase, method_of(config), training.symmetry_of(prepared, config)),
    )  # fmt: skip
    optimizer = torch.optim.Adam([p for p in step.parameters() if p.requires_grad], fused=True)
    bf16 = resolve_precision(config.train.precision, device, min(batches.codec.shape[1:])) == "bf16"
    seconds = []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for i in range(3):
            began = time.perf_counter()
            for micro in range(config.train.accumulate):
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss = step(batches(i, micro))["loss"]
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    # Linux counts in KiB; the high-water mark of the process, which is that of the probe
    used = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return min(seconds[1:]) / config.train.batch_size, float(used)


@torch.no_grad()
def probe_sampling(model: Any, config: RunConfig, device: torch.device, groups: Groups) -> float:
    """Seconds per image."""
    model = model.to(device).eval()
    whole = sampling(config)
    how = replace(whole, steps=min(2, whole.steps))
    options = how.generator_options(how.guide(model, groups, partial=True))
    labels = [0] * how.batch_size
    generate(model, labels, range(len(labels)), **options)
    began = time.perf_counter()
    generate(model, labels, range(len(labels)), **options)
    return (time.perf_counter() - began) / len(labels) * whole.steps / how.steps
