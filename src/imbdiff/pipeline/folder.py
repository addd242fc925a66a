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
model/              the averaged weights: model.json, model.safetensors; of a guide: guide.json, guide.safetensors;
                    of a codec: codec.safetensors
samples/            class folders of PNGs, manifest.json
curation/           where images were chosen among: manifest.json (which are kept, why, scores), the working classifier
metrics.json        the numbers of the evaluation
features/, judge/   what they were measured with
classifier/         the arms of the comparison; in model/ the classifier that predicts
report.html         the page
stages.json         which stages are complete, from which inputs, and how long they took
prepared.npz        the images of all splits, decoded: later verbs read them in place of the source's files
==================  ==================================================================

What is imported here is light: a folder in use, and options that do not fit, are refused before anything heavy is.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from imbdiff.config import NOT_DECISIVE, FitConfig, RunConfig, flatten, override, to_dict
from imbdiff.data.stats import ClassStats
from imbdiff.pipeline.environment import environment
from imbdiff.presets import preset
from imbdiff.runtime.code import found_in, seal_beside
from imbdiff.runtime.errors import ConfigError, RunError, listing
from imbdiff.runtime.files import (
    is_disk_full,
    read_json,
    read_yaml,
    sealed,
    sha256_file,
    understood,
    unsealed,
    write_json,
    write_text,
)

#: options that may change between two calls on one run folder: they concern later stages or the machine
LATER = ("sample", "curate", "evaluate", "classify", "device", "preset", "track")
ALTERED = "was altered, or is of another run"
HARMLESS = tuple(f"train.{name}" for name in NOT_DECISIVE)
#: options of the classifiers of the comparison by which the one that curates is trained too
WORKING = tuple(f"classify.{option.name}" for option in fields(FitConfig))
#: options, or groups of options, that each stage is done with and that may change later
OPTIONS: dict[str, tuple[str, ...]] = {
    "train": (),
    "sample": ("sample", "curate.candidates"),
    "curate": ("curate", *WORKING),
    "evaluate": ("evaluate",),
    "classify": ("classify",),
}
#: stage -> it and the stages that build on it, in the order of the stages
FOLLOWERS = {
    "train": ("train", "sample", "curate", "evaluate", "classify"),
    "sample": ("sample", "curate", "evaluate", "classify"),
    "curate": ("curate", "evaluate", "classify"),
    "evaluate": ("evaluate",),
    "classify": ("classify",),
}


#: stage -> the file that is written last, whose hash stands in the stage's mark as "output"
OUTPUT = {
    "sample": "samples/manifest.json",
    "curate": "curation/manifest.json",
    "evaluate": "metrics.json",
    "classify": "classifier/results.json",
}
STAGES = ("train", "sample", "curate", "evaluate", "classify", "report")


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: of `STAGES`.
        inputs: everything that decides what it gives, besides the data and the seed; None: there is nothing to do.
        work: does it from what `inputs` gave, on every process that takes part; returns facts to keep in its mark.
        whole: whether its output is all there besides the files that its mark in ``stages.json`` names.
        everywhere: every process takes part, otherwise the first alone.
    """

    name: str
    inputs: Callable[[], Any]
    work: Callable[[Any], dict[str, Any]]
    whole: Callable[[Mapping[str, Any]], bool] = lambda _: True
    everywhere: bool = True


_LENT: set[str] = set()
"""Folders that this process holds and lets what it calls lock again."""


@dataclass(frozen=True)
class RunFolder:
    """A run folder that exists or will; `marker` is the file by which one is known."""

    path: Path
    marker: str = "config.yaml"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def exists(self) -> bool:
        return (self / self.marker).exists()

    def command(self, verb: str, *words: str) -> str:
        """The command line of a verb on this folder, as it is to be typed."""
        return shlex.join(["imbdiff", verb, str(self.path), *words])

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
                f"the folder {self.path} lies inside the images, {source}: it would become a class of its own",
                "give an --out elsewhere",
            )
        if self.path.exists() and not self.exists:
            others = [p.name for p in self.path.iterdir() if p.name != ".lock" and not p.name.endswith(".partial")]
            if others:
                raise RunError(
                    f"{self.path} cannot be used: it holds {len(others)} other files, such as {sorted(others)[0]!r}",
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
        self.allow_code()
        # runs of versions without codecs are of pixels
        values = {"codec": {"kind": "identity"}, **read_yaml(self / "config.yaml")}
        source = str(values.pop("source", ""))
        if not source:
            raise RunError(
                f"{self / 'config.yaml'} is damaged: it does not name the images",
                "repeat the command that began the run, with another --out",
            )
        try:
            return source, override(preset(values.get("preset", "tiny")), values)
        except ConfigError as error:
            raise RunError(
                f"{self.path} was made by another version, or its config.yaml was altered: {error.message}",
                "run again with another --out",
            ) from error

    def save_config(self, source: str, config: RunConfig) -> None:
        text = yaml.safe_dump({"source": source, **to_dict(config)}, sort_keys=False, allow_unicode=True)
        path = self / "config.yaml"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
        seal_beside(path, text)

    def allow_code(self) -> None:
        """What code this run's options name may be run, where this user began the run by naming it."""
        if self.exists:
            found_in(self / "config.yaml", (self / "config.yaml").read_text(encoding="utf-8", errors="replace"))

    def settled(self, config: RunConfig) -> RunConfig:
        """`config` with what it leaves to the images as this run, where it has begun, decided it."""
        if not self.exists:
            return config
        saved, open_ = self.saved()[1], (None, "auto")
        own = {f.name: getattr(saved.data, f.name) for f in fields(saved.data) if getattr(config.data, f.name) in open_}
        codec = config.codec
        if codec.kind == "auto" and codec in (type(codec)(), replace(saved.codec, kind="auto")):
            codec = saved.codec
        return replace(config, data=replace(config.data, **own), codec=codec)

    def class_stats(self) -> ClassStats:
        """The classes of the training images, as the split has them."""
        with understood(self / "split.json"):
            split = read_json(self / "split.json")
            return ClassStats(tuple(split["class_names"]), tuple(split["counts"]["train"]))

    def check_same(self, config: RunConfig) -> None:
        """Refuses to continue a run with options that would have led elsewhere.

        Raises:
            RunError: names each option that differs, with both values.
        """
        from imbdiff.methods import with_all_constants

        old, new = (flatten(to_dict(with_all_constants(c))) for c in (self.saved()[1], config))
        if old["method"] != new["method"]:  # its constants are others then
            old, new = ({k: v for k, v in values.items() if k[:10] != "constants."} for values in (old, new))
        check_equal(f"the run in {self.path}", decisive(old), decisive(new))

    def check_only(self, config: RunConfig, verb: str) -> None:
        """Refuses options of other stages on a verb: they would be saved, and printed, without having been used.

        Raises:
            ConfigError: names them.
        """
        old, new = flatten(to_dict(self.saved()[1])), flatten(to_dict(config))
        if verb == "curate" and new["curate.candidates"] != old["curate.candidates"]:
            more = ("--curate.candidates", f"{new['curate.candidates']:g}")
            raise ConfigError(
                f"{' '.join(more)} changes how many images are generated, and sampling comes first",
                f"use `{self.command('sample', *more, '--replace')}`, which curates too",
            )
        own = {"sample": ("sample", "curate"), "curate": ("curate",)}.get(verb, (verb,))
        if verb == "curate" and new["curate.policy"] != "none":
            own += WORKING
        allowed = (*own, "device")
        others = [f"--{option(n)}" for n in new if new[n] != old.get(n) and not _within(n, allowed)]
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
        counts = counts if len(counts) <= 160 else counts[:157] + "..."
        raise RunError(
            f"the run in {self.path} is of other data: its split has hash {str(old.get('hash'))[:12]}, this one "
            f"{manifest['hash'][:12]} (training images per class: {counts})",
            "give another --out; nothing was changed",
        )

    def unwritable(self, error: OSError) -> RunError:
        """What to say when reading or writing below this folder failed."""
        if is_disk_full(error):
            return RunError(
                f"no space left while writing below {self.path}",
                "free some space and repeat the same command: it continues from the last complete file",
            )
        place = error.filename or self.path
        remedy = f"make everything in {self.path} readable and writable for you, or give another --out"
        if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
            remedy = "move it away and repeat the command"
        return RunError(f"{place}: {error.strerror or error}", remedy)

    def begin(self, source: str, config: RunConfig, manifest: Mapping[str, Any], device: str, seconds: float) -> None:
        """Saves what is known before the first stage. Only for the holder of the lock.

        A new folder saves all options; one that exists takes over those that concern no stage, and each stage adds its
        own when it is done.
        """
        self.remove_debris()
        own = [name for names in OPTIONS.values() for name in names]
        self.save_config(source, _mixed(config, self.saved()[1], own) if self.exists else config)
        write_json(self / "split.json", sealed(manifest))
        if "data" not in self.stages():
            self.write_stages({"data": {"inputs": manifest["hash"], "seconds": round(seconds, 2)}, **self.stages()})
        if not (self / "environment.json").exists():
            write_json(self / "environment.json", sealed(environment(device)))

    def remove_debris(self) -> None:
        """Removes what killed commands left half written. Only for the holder of the lock."""
        for debris in [*self.path.rglob(".*.partial"), *self.path.glob(".*.old")]:
            if debris.is_dir():
                shutil.rmtree(debris, ignore_errors=True)
            else:
                debris.unlink(missing_ok=True)

    def stages(self) -> dict[str, Any]:
        """The marks of the stages that are complete: from which inputs, how long they took, and facts."""
        path = self / "stages.json"
        try:
            return {stage: unsealed(mark) for stage, mark in read_json(path).items()} if path.exists() else {}
        except (ValueError, TypeError) as error:
            raise RunError(f"{path} is damaged: {error}", "remove it and repeat the command that wrote it") from error

    def write_stages(self, marks: Mapping[str, Any]) -> None:
        write_json(self / "stages.json", {stage: sealed(mark) for stage, mark in marks.items()})

    def hashes(self, *names: str) -> dict[str, str]:
        """{name: hash} of those of these files that are there."""
        return {name: sha256_file(self / name) for name in names if (self / name).is_file()}

    def altered(self, mark: Mapping[str, Any], stage: str) -> Path | None:
        """A file that a stage with this mark has left and that is missing, damaged, or of another run."""
        known = dict(mark.get("files", {}))
        if stage in OUTPUT and "output" in mark:
            known[OUTPUT[stage]] = mark["output"]
        return next((self / n for n in known if self.hashes(n).get(n) != known[n]), None)

    def check_whole(self) -> None:
        """Refuses to show what the stages that are done have not left so.

        Raises:
            RunError: names the file, and the command that makes it again.
        """
        for stage, mark in self.stages().items():
            if (path := self.altered(mark, stage)) is not None:
                raise RunError(f"{path} {ALTERED}", f"run `{self.again(stage)}`, which makes it again")

    def again(self, stage: str) -> str:
        """The command line that does a stage."""
        if stage in OUTPUT:
            return self.command(stage)
        source, config = self.saved()
        return repeat_command(source, self.path, config)

    def trained(self) -> Path:
        """The folder of the model that this run has trained.

        Raises:
            RunError: there is none yet, or its weights are not those that training gave.
        """
        from imbdiff.diffusion.saved import saved_identity

        mark, folder = self.stages().get("train"), self / "model"
        wrong = "" if (folder / "model.safetensors").is_file() else "is missing"
        if not wrong and (mark is None or saved_identity(folder) != mark["weights"]):
            wrong = ALTERED if mark else "is of a training that is not finished"
        if wrong:
            raise RunError(f"{folder / 'model.safetensors'} {wrong}", f"run `{self.again('train')}` first")
        return folder

    def mark(self, stage: str, mark: Mapping[str, Any], device: str) -> None:
        """Marks `stage` as complete, and keeps what it was done with."""
        self.write_stages({**self.stages(), stage: mark})
        path, found = self / "environment.json", environment(device)
        short = {k: found[k] for k in ("imbdiff", "processor", "threads", "device", "gpu") if k in found}
        known = read_json(path)
        write_json(path, sealed({**known, "stages": {**known.get("stages", {}), stage: short}}))

    def forget(self, stage: str) -> None:
        """Removes the marks of `stage` and of those that build on it, before any of their output is touched."""
        marks = self.stages()
        left = {name: mark for name, mark in marks.items() if name not in FOLLOWERS[stage]}
        if left != marks:
            self.write_stages(left)

    def check_replaced(self, stage: str, marks: Mapping[str, Any], replace: bool) -> None:
        """Refuses to do `stage` anew where that would lose results, unless they are to be replaced.

        Raises:
            RunError: names them, and what leaves them as they are.
        """
        lost = [name for name in FOLLOWERS[stage] if name in marks]
        if lost and not replace:
            beside = f"{self.command('sample', '--number', 'NAME=50', '--out', 'FOLDER')} adds images and leaves them; "
            kept = "; another --out keeps both" if stage == "train" else ""
            raise RunError(
                f"{self.path} holds results by other options, which this would replace: {', '.join(lost)}",
                f"{beside if stage == 'sample' else ''}--replace replaces them{kept}",
            )

    def keep_options(self, stage: str, config: RunConfig, names: Sequence[str] | None = None) -> None:
        """Saves the options that `stage` was done with: all of its own, or `names`."""
        source, saved = self.saved()
        self.save_config(source, _mixed(saved, config, OPTIONS[stage] if names is None else names))

    def options_of(self, stage: str, config: RunConfig) -> list[str]:
        """The command line's words for those options of `stage` that are not as saved."""
        old, new = flatten(to_dict(self.saved()[1])), flatten(to_dict(config))
        differ = [name for name in new if _within(name, OPTIONS[stage]) and new[name] != old.get(name)]
        return [word for name in differ for word in (f"--{option(name)}", str(new[name]))]

    @contextmanager
    def locked(self, *, lend: bool = False) -> Any:
        """Holds the folder for this process; of one in which nothing was written, nothing is left.

        Args:
            lend: what is called meanwhile may lock the folder too.

        Raises:
            RunError: another process works in it.
        """
        from filelock import FileLock, Timeout

        own = str(self.path.resolve())
        if own in _LENT:
            yield
            return
        made = [place for place in (self.path, *self.path.parents) if not place.exists()]
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
        if lend:
            _LENT.add(own)
        try:
            yield
        finally:
            _LENT.discard(own)
            if made and [p.name for p in self.path.iterdir()] in ([".lock"], []):
                Path(self / ".lock").unlink(missing_ok=True)
                for place in made:
                    with suppress(OSError):  # another command has put something there
                        place.rmdir()
            lock.release()


def _within(name: str, groups: Sequence[str]) -> bool:
    """Whether a flattened name is one of `groups` or inside one."""
    return any(name == group or name.startswith(group + ".") for group in groups)


def _mixed(config: RunConfig, other: RunConfig, names: Sequence[str]) -> RunConfig:
    """`config` with the options `names`, or groups of them, of `other`."""
    for name in names:
        group, _, single = name.partition(".")
        value = getattr(other, group)
        if single:
            value = replace(getattr(config, group), **{single: getattr(value, single)})
        config = replace(config, **{group: value})
    return config


def repeat_command(source: str, out: str | Path, config: RunConfig) -> str:
    """The command line that makes this run: the preset, and whatever differs from it."""
    from imbdiff.methods import get_method
    from imbdiff.recipe import constants

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


def decisive(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, by name, that cannot be changed later."""
    return {name: v for name, v in options.items() if name.split(".")[0] not in LATER and name not in HARMLESS}


def check_equal(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses to continue `what`, which was made with the options `old`, with others.

    Raises:
        RunError: names each option that differs, with both values.
    """
    differ = [
        f"--{option(name)}: {old.get(name)!r} there, {new.get(name)!r} here"
        for name in {**new, **old}
        if old.get(name) != new.get(name)
    ]
    if differ:
        raise RunError(
            f"{what} was made with other options:\n{listing(differ)}",
            "repeat it with the same options, or give another --out; nothing was changed",
        )
