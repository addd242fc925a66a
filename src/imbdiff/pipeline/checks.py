"""What is refused before the expensive part starts: first options alone, then options against the data."""

from __future__ import annotations

import torch

from imbdiff.config import RunConfig
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.backbones import BACKBONES
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.schedulers import make_scheduler
from imbdiff.methods import method_of
from imbdiff.metrics.measures import choose_measures
from imbdiff.pipeline.building import check_phases, init_folder, new_model, symmetry_of
from imbdiff.pipeline.recognising import classifier_arms, classifier_plan
from imbdiff.pipeline.sampling import check_needs, sampling
from imbdiff.pipeline.strategy import check_strategy, images_to_draw
from imbdiff.recognition.curation import parse_policy
from imbdiff.recognition.fitting import check_trainings
from imbdiff.recognition.networks import check_network
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.dist import launched
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.launch import cores
from imbdiff.runtime.tables import lookup


def count_processes(wanted: int | str, config: RunConfig) -> int:
    """How many processes are to share a command's work here; 1 in one of them.

    Args:
        wanted: a number, or "auto": on a CPU one per core, at most 4, so many that they divide every batch; otherwise
            one for each GPU.

    Raises:
        ConfigError: fewer than 1, or more GPUs than there are.
    """
    if wanted == 1 or launched():
        return 1
    device = resolve_device(config.device)
    there = torch.cuda.device_count() if device.type == "cuda" else cores()
    if wanted != "auto":
        if int(wanted) < 1 or (device.type == "cuda" and int(wanted) > there):
            raise ConfigError(
                f"--processes {wanted} on {there} {'GPUs' if device.type == 'cuda' else 'CPU cores'}",
                f"give 1 to {there}, or auto",
            )
        return int(wanted)
    parts = [part for phase in method_of(config).phases for part in phase.parts]
    shared = [part.groups or config.train.batch_size for part in parts]
    most = there if device.type == "cuda" else min(there, 4)
    return next(
        n for n in range(most, 0, -1) if all(size % (n * config.train.accumulate) == 0 for size in shared) or n == 1
    )


def check_options(config: RunConfig, *, training: bool = True) -> None:
    """Refuses options that no data could make right, before any data is read.

    Raises:
        ConfigError: an unknown method, backbone, classifier, measure or strategy, a sampler that does not fit the
            process, a device that is not there, options that have no effect on the method, or no model to start from.
    """
    method = method_of(config)
    resolve_device(config.device)
    how = sampling(config)
    make_scheduler(how.sampler, PROCESSES[config.model.process], how.steps)
    if config.model.backbone != "auto":
        lookup("backbones", BACKBONES, config.model.backbone, kind=tuple)
    choose_measures(config.evaluate.measures)
    check_network(config.classify.network)
    classifier_arms(config.classify)
    check_strategy(config.sample.strategy)
    parse_policy(config.curate.policy)
    check_needs(config)
    if not training:
        return
    if config.watch.every and method.target.label_dropout == 1:
        raise ConfigError(
            f"--watch.every {config.watch.every}: {config.method} trains its model without labels, and the guide that "
            "leads images to classes comes last: what is drawn while training has nothing to do with the classes asked "
            "for",
            "leave --watch.every out",
        )
    if config.model.init is None and method.init == "required":
        raise ConfigError(
            f"the method {config.method} starts from a trained model", "give its folder as --model.init RUN/model"
        )
    if config.model.init is not None:
        init_folder(config.model.init)
        for name, value in (
            ("backbone", config.model.backbone != "auto"),
            ("dropout", config.model.dropout is not None),
        ):
            if value:
                raise ConfigError(f"--model.{name} has no effect on a model that is there already", "leave it out")


def check_fit(prepared: Prepared, config: RunConfig, *, training: bool = True, world: int = 1) -> None:
    """Refuses options that do not fit the data, before the expensive part: everything that will be needed is built.

    Raises:
        ImbdiffError: naming the option.
    """
    wanted = images_to_draw(config.sample.strategy, prepared.stats)
    against_balanced(prepared, config)
    how = sampling(config)
    how.check(prepared.stats, prepared.groups)
    if training:
        new_model(prepared, config)
        check_phases(prepared, config, world=world)
    plan = classifier_plan(config.classify, symmetry=symmetry_of(prepared, config))
    arms = [(a.recipe, a.use) for a in classifier_arms(config.classify) if sum(wanted) or not a.needs_synthetic]
    # and the classifiers that choose, judge and measure: by cross-entropy or balanced softmax, of one kind of images
    check_trainings(prepared.train, plan, [("ce", None), *arms])


def against_balanced(prepared: Prepared, config: RunConfig) -> bool:
    """Whether images are measured against the balanced set too, the literature's reference: for benchmarks, or asked.

    Raises:
        ConfigError: it was asked for, and the tail was not cut from a balanced set.
    """
    wanted = config.evaluate.balanced
    if wanted and prepared.pool is None:
        raise ConfigError(
            "--evaluate.balanced: there is no balanced training set, because no tail was cut from one",
            "leave it out; the reference is the test split",
        )
    if wanted is None:
        return prepared.pool is not None and prepared.manifest["source"]["kind"] == "benchmark"
    return wanted
