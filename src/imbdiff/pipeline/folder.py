"""The run folder: what one experiment did, kept so that the same command continues it.

==================  ==================================================================
config.yaml         the resolved configuration and the source
environment.json    versions and hardware
split.json          the split: counts, ids, hash
log.jsonl           losses by images seen; of a method's other trainings: log-NAME.jsonl
checkpoints/        of each training phase
previews/           grids of classes by samples while training
watch.jsonl         numbers measured while training, where that was asked for
trackers/           files of trackers such as tensorboard, where one was asked for
model/              the averaged weights: model.json, model.safetensors; of a guide: guide.json, guide.safetensors
samples/            class folders of PNGs, manifest.json
curation/           where images were chosen among: manifest.json (which are kept, why, scores), the working classifier
metrics.json        the numbers of the evaluation
features/, judge/   what they were measured with
classifier/         the arms of the comparison
report.html         the page
stages.json         which stages are complete, from which inputs, and how long they took
==================  ==================================================================
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from imbdiff.config import NOT_DECISIVE, FitConfig, RunConfig, flatten, override, to_dict
from imbdiff.methods import get_method, with_all_constants
from imbdiff.pipeline.environment import environment
from imbdiff.pipeline.samples import sampled_inputs
from imbdiff.presets import preset
from imbdiff.recipe import constants
from imbdiff.runtime.errors import ConfigError, ImbdiffError, RunError, listing
from imbdiff.runtime.files import is_disk_full, read_json, write_json, write_text

#: options that may change between two calls on one run folder: they concern later stages or the machine
LATER = ("sample", "curate", "evaluate", "classify", "device", "preset", "track")
HARMLESS = tuple(f"train.{name}" for name in NOT_DECISIVE)
#: options of the classifiers of the comparison by which the one that chooses among images is trained too
WORKING = tuple(f"classify.{option.name}" for option in fields(FitConfig))
#: stage -> it and the stages that build on it, in the order of the stages
FOLLOWERS = {
    "train": ("train", "sample", "curate", "evaluate", "classify"),
    "sample": ("sample", "curate", "evaluate", "classify"),
    "curate": ("curate", "evaluate", "classify"),
    "evaluate": ("evaluate",),
    "classify": ("classify",),
}


@dataclass(frozen=True)
class RunFolder:
    """A run folder that exists or will."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def exists(self) -> bool:
        return (self / "config.yaml").exists()

    def check_usable(self, source: str) -> None:
        """Refuses a path that holds something else, or that lies among the images.

        Raises:
            RunError: it is a file or below one, a folder with other content, or inside the source.
        """
        for place in (self.path, *self.path.parents):
            if place.is_file():
                raise RunError(f"{place} is a file", "give another --out")
        inside = Path(source).resolve()
        if inside.is_dir() and self.path.resolve().is_relative_to(inside):
            raise RunError(
                f"the run folder {self.path} lies inside the images, {source}: it would become a class of its own",
                "give an --out elsewhere",
            )
        if self.path.exists() and not self.exists:
            others = [p.name for p in self.path.iterdir() if p.name != ".lock" and not p.name.endswith(".partial")]
            if others:
                raise RunError(
                    f"{self.path} is not a run folder: it holds {len(others)} other files, such as {others[0]!r}",
                    "give an empty or a new folder as --out; nothing was changed",
                )

    def saved(self) -> tuple[str, RunConfig]:
        """The source and configuration that the run was made with.

        Raises:
            RunError: there is no run in this folder.
        """
        if not self.exists:
            raise RunError(
                f"{self.path} is not a run folder (config.yaml is missing)", "give a folder that `imbdiff run` made"
            )
        values = read_yaml(self / "config.yaml")
        source = str(values.pop("source", ""))
        return source, override(preset(values.get("preset", "tiny")), values)

    def save_config(self, source: str, config: RunConfig) -> None:
        text = yaml.safe_dump({"source": source, **to_dict(config)}, sort_keys=False, allow_unicode=True)
        write_text(self / "config.yaml", text)

    def check_same(self, config: RunConfig) -> None:
        """Refuses to continue a run with options that would have led elsewhere.

        Raises:
            RunError: names each option that differs, with both values.
        """
        old, new = (flatten(to_dict(with_all_constants(c))) for c in (self.saved()[1], config))
        if old["method"] != new["method"]:  # its constants are others then
            old, new = ({k: v for k, v in values.items() if k[:10] != "constants."} for values in (old, new))
        differ = [
            f"--{option(name)}: {old.get(name)!r} there, {new.get(name)!r} here"
            for name in {**new, **old}
            if name.split(".")[0] not in LATER and name not in HARMLESS and old.get(name) != new.get(name)
        ]
        if differ:
            raise RunError(
                f"the run in {self.path} was made with other options:\n{listing(differ)}",
                "repeat it with the same options, or give another --out; nothing was changed",
            )

    def check_only(self, config: RunConfig, verb: str) -> None:
        """Refuses options of other stages on a verb: they would be saved, and printed, without having been used.

        Raises:
            ConfigError: names them.
        """
        old, new = flatten(to_dict(self.saved()[1])), flatten(to_dict(config))
        if verb == "curate" and new["curate.draw"] != old["curate.draw"]:
            raise ConfigError(
                f"--curate.draw {new['curate.draw']:g} changes how many images are drawn, and sampling comes first",
                f"use `imbdiff sample {self.path} --curate.draw {new['curate.draw']:g}`, which curates too",
            )
        own = ("sample", "curate", "device") if verb == "sample" else (verb, "device")
        also = WORKING if verb == "curate" and new["curate.policy"] != "none" else ()
        others = [
            f"--{option(n)}" for n in new if new[n] != old.get(n) and n.split(".")[0] not in own and n not in also
        ]
        if others:
            raise ConfigError(
                f"imbdiff {verb} takes no other stage's options: {', '.join(others)}",
                "give them to the stage that they are of; what training was done with cannot be changed",
            )

    def check_data(self, manifest: Mapping[str, Any]) -> None:
        """Refuses to continue a run whose images are not those of `manifest`.

        Raises:
            RunError: naming what differs.
        """
        if not (self / "split.json").exists():
            return
        old = read_json(self / "split.json")
        if old.get("hash") == manifest["hash"]:
            return
        counts = f"{old.get('counts', {}).get('train')} there, {manifest.get('counts', {}).get('train')} here"
        raise RunError(
            f"the run in {self.path} is of other data: its split has hash {str(old.get('hash'))[:12]}, this one "
            f"{manifest['hash'][:12]} (training images per class: {_short(counts)})",
            "give another --out; nothing was changed",
        )

    def unwritable(self, error: OSError) -> RunError:
        """What to say when writing below this folder failed."""
        if is_disk_full(error):
            return RunError(
                f"no space left while writing below {self.path}",
                "free some space and repeat the same command: it continues from the last complete file",
            )
        return RunError(f"{self.path} cannot be written: {error}", "check permissions, or give another --out")

    def stages(self) -> dict[str, Any]:
        path = self / "stages.json"
        return read_json(path) if path.exists() else {}

    def finished(self, stage: str, inputs: str) -> bool:
        """Whether `stage` is complete with these inputs."""
        return self.stages().get(stage, {}).get("inputs") == inputs

    def mark(self, stage: str, inputs: str, seconds: float, **facts: Any) -> None:
        entry = {"inputs": inputs, "seconds": round(seconds, 2), **facts}
        write_json(self / "stages.json", {**self.stages(), stage: entry})

    def forget(self, stage: str) -> None:
        """Takes back the marks of `stage` and of those that build on it, before any of their output is touched."""
        marks = self.stages()
        left = {name: mark for name, mark in marks.items() if name not in FOLLOWERS[stage]}
        if left != marks:
            write_json(self / "stages.json", left)

    @contextmanager
    def put_back_if_refused(self) -> Iterator[None]:
        """Where what is done inside is refused, options and marks become what they were before, so that the refused
        option does not stay and takes no results away.

        What was finished inside stays, with the options that it was made by; a new run keeps everything.
        """
        if not self.exists:
            yield
            return
        text, (source, old), marks = (self / "config.yaml").read_text(encoding="utf-8"), self.saved(), self.stages()
        try:
            yield
        except ImbdiffError:
            now, order = self.stages(), list(FOLLOWERS)
            ended = [stage for stage in order if stage in now and now[stage] != marks.get(stage)]
            done = order[: order.index(ended[-1]) + 1] if ended else []
            lost = {follower for s in done if now.get(s) != marks.get(s) for follower in FOLLOWERS[s]}
            if (
                "sample" in marks
                and "sample" not in now
                and sampled_inputs(self / "samples") != marks["sample"]["inputs"]
            ):
                lost |= {*FOLLOWERS["sample"]}  # drawing had begun
            kept = {name: mark for name, mark in marks.items() if name not in lost}
            write_json(self / "stages.json", {**kept, **{s: now[s] for s in done if s in now}})
            if not done:
                write_text(self / "config.yaml", text)
                raise
            new = self.saved()[1]
            mixed = replace(old, **{stage: getattr(new, stage) for stage in done})
            if "sample" in done:  # it drew so many
                mixed = replace(mixed, curate=replace(mixed.curate, draw=new.curate.draw))
            self.save_config(source, mixed)
            raise

    def sweep(self) -> None:
        """Removes what killed commands left half written. Only for the holder of the lock."""
        for debris in [*self.path.rglob(".*.partial"), *self.path.glob(".*.old")]:
            if debris.is_dir():
                shutil.rmtree(debris, ignore_errors=True)
            else:
                debris.unlink(missing_ok=True)

    def save_environment(self, stage: str, device: str) -> None:
        """Keeps what `stage` was done with; "run" is what the folder was begun with."""
        path = self / "environment.json"
        known = read_json(path) if path.exists() else {}
        if stage == "run" and known:
            return
        found = environment(device)
        if stage == "run":
            write_json(path, found)
        else:
            short = {k: found[k] for k in ("imbdiff", "processor", "threads", "device", "gpu") if k in found}
            write_json(path, {**known, "stages": {**known.get("stages", {}), stage: short}})

    @contextmanager
    def locked(self) -> Any:
        """Holds the folder for this process.

        Raises:
            RunError: another process works in it.
        """
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path} cannot be made: {error}", "give another --out") from error
        lock = FileLock(self / ".lock", blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"another imbdiff command is working in {self.path}", "wait for it, or give another --out"
            ) from error
        try:
            yield
        finally:
            lock.release()


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: it is missing, is not YAML, or is not a mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist", "give the path of a YAML file") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}", "give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}", "correct it") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of options", "such as `train: {images: 100000}`")
    return values


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def repeat_command(source: str, out: str | Path, config: RunConfig) -> str:
    """The command line that makes this run: the preset, and whatever differs from it."""
    base, own = flatten(to_dict(preset(config.preset))), flatten(to_dict(config))
    published = {f"constants.{name}": c.default for name, c in constants(get_method(config.method)).items()}
    base |= published
    words = ["imbdiff", "run", source, "--preset", config.preset]
    for name, value in own.items():
        if (name not in base or value != base[name]) and name != "preset":
            words += [f"--{option(name)}", *(str(v) for v in (value if isinstance(value, list) else [value]))]
    return shlex.join([*words, "--out", str(out)])


def option(name: str) -> str:
    """The option of the command line for a configuration's flattened name: constants stand behind what they are of."""
    for inner, outer in (("sample.constants.", "sample.guidance."), ("constants.", "method.")):
        if name.startswith(inner):
            return outer + name[len(inner) :]
    return name
