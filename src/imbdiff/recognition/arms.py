"""The arms of a comparison: recipe x number of synthetic images x curation x use; and what cannot be compared.

`classify` compares a small grid of them, with the images that a run kept; `study` a larger one, see
:mod:`imbdiff.recognition.choice`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import named
from imbdiff.recognition.curation import parse_policy
from imbdiff.recognition.decision import unvalidated
from imbdiff.recognition.recipes import get_recipe
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.files import digest

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

WITHOUT = ("ce", "resampling", "balanced-softmax")
WITH = ("ce", "balanced-softmax")
LEADING = "balanced-softmax"
"""The recipe of the ensemble that leads: fixed here, before any result."""
SEED_STEP = 1_000
"""Between the seeds of equal networks of an ensemble."""
CHANGES = 1.0
"""Probability of each geometric change of training images where more than the plan's augmentation is done."""
LONGEST = 60
"""Characters of a number in names."""


@dataclass(frozen=True)
class Arm:
    """One way of training the classifier in a comparison.

    Attributes:
        recipe: a name of :data:`imbdiff.recognition.recipes.RECIPES`.
        use: how synthetic images take part; None: they do not.
        number: of a grid, how many synthetic images, as it was asked for; None: all that are there.
        wanted: (C,) images per class that this means.
        curation: the policy that chose the images.
        label: as printed, in place of what follows from the rest.
        placebo: real images, repeated, take the place of synthetic ones: what then helps is not the images.
        changes: probability of each geometric change of training images, more than the plan's augmentation.
        members: the networks of an ensemble, whose probabilities are averaged; the rest says nothing then.
        teacher: the ensemble that gives this network soft labels in place of labels, of real and of synthetic images.
    """

    recipe: str
    use: Use | None = None
    number: str | None = None
    wanted: tuple[int, ...] = ()
    curation: str = "none"
    label: str = ""
    placebo: bool = False
    changes: float = 0.0
    members: tuple[Arm, ...] = ()
    teacher: Arm | None = None

    @property
    def name(self) -> str:
        recipe = get_recipe(self.recipe).label
        if self.label:
            return self.label
        if self.members:
            names = {member: f"({member.name})" if "+" in member.name else member.name for member in self.members}
            return " + ".join(f"{n} x {names[member]}" for member, n in Counter(self.members).items())
        if self.teacher is not None:
            return "one network distilled from the ensemble"
        if self.use is None:
            return f"{recipe}, strong augmentation" if self.changes else recipe
        if self.placebo:
            return f"repeated real + {recipe}"
        if self.number is None:
            return f"synthetic + {recipe}"
        number = self.number
        if len(number) > LONGEST:  # totals of many classes; the hash keeps two of them apart
            number = f"{number[:LONGEST]}... ({digest(number)[:6]})"
        curated = "" if self.curation == "none" else f", {self.curation}"
        return f"{number}{curated}: {recipe}, {self.use.describe()}"

    @property
    def needs_synthetic(self) -> bool:
        """Whether synthetic images reach it: its own, those of a member, or those that its teacher learned from."""
        others = self.members if self.teacher is None else (*self.members, self.teacher)
        return self.sees_synthetic or any(other.needs_synthetic for other in others)

    @property
    def sees_synthetic(self) -> bool:
        """Whether its own training has synthetic images."""
        return not self.members and self.use is not None and not self.placebo

    def networks(self, seed: int) -> list[tuple[Arm, int]]:
        """What is trained for one classifier of this arm: arms of one network, and their seeds.

        The first network of a kind has `seed`, the same as that kind's own arm, so that it is trained once.
        """
        if not self.members:
            return [(self, seed)]
        seen: Counter[Arm] = Counter()
        found = []
        for member in self.members:
            found.append((member, seed + SEED_STEP * seen[member]))
            seen[member] += 1
        return found

    @property
    def prior(self) -> str | None:
        """What the recipe counts as images of a class: "train", "effective", or None where it counts nothing."""
        if self.members or not get_recipe(self.recipe).needs_prior:
            return None
        return "train" if self.use is None else self.use.prior

    @property
    def file(self) -> str:
        """The beginning of its files' names."""
        kind = "repeated-real+" if self.placebo else "synthetic+" if self.needs_synthetic else ""
        return kind + re.sub(r"[^\w.-]", "-", self.recipe, flags=re.A)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "recipe": self.recipe,
            "label": get_recipe(self.recipe).label,
            "use": None if self.use is None else asdict(self.use),
            "needs_synthetic": self.needs_synthetic,
            "members": [member.name for member in self.members],
            "teacher": None if self.teacher is None else self.teacher.name,
            "placebo": self.placebo,
            "changes": self.changes,
            "prior": self.prior,
        }


def recipes_alone(without: Sequence[str], with_: Sequence[str]) -> list[str]:
    """The recipes that are trained without synthetic images: those that no comparison may lack, because filling classes
    re-balances them too; those asked for; and each that is used with synthetic images, because otherwise these would be
    credited with what the recipe does."""
    return list(dict.fromkeys((*WITHOUT, *without, *with_)))


def with_controls(arms: Sequence[Arm], without: Sequence[str] = WITHOUT) -> tuple[Arm, ...]:
    """`arms` after those of :func:`recipes_alone` that are not among them."""
    alone = {arm.recipe for arm in arms if arm == Arm(arm.recipe, label=arm.label)}
    wanted = recipes_alone(without, [arm.recipe for arm in arms])
    return (*(Arm(recipe) for recipe in wanted if recipe not in alone), *arms)


def make_arms(
    without: Sequence[str] = WITHOUT,
    with_: Sequence[str] = WITH,
    use: Use | None = None,
    *,
    ensemble: int = 2,
    changes: float = CHANGES,
    leading: str = LEADING,
    distilled: bool = True,
) -> tuple[Arm, ...]:
    """The arms of `classify` by the names of their recipes: those without synthetic images, then those that use them.

    Args:
        without, with_: recipes of single networks.
        use: how synthetic images take part.
        ensemble: n networks without and n with synthetic images, of the leading recipe, and what they are compared
            with: 2n without; n without and n of which images are changed as strongly; n without and n that see real
            images again in place of the synthetic ones. Each kind of network is an arm by itself too. 0: none of
            these, and no changes.
        changes: probability of each geometric change where synthetic images are used, in their placebo, and in the arm
            with strong augmentation.
        leading: the recipe whose synthetic images are judged.
        distilled: one network that learns the soft labels of the ensemble with synthetic images.

    Raises:
        ConfigError: an unknown recipe, or one that is named twice.
    """
    use = use or Use(prior="domain")
    for names in (without, with_):
        _check_once("recipe", [get_recipe(name).label for name in names])
    changes = changes if ensemble else 0.0
    single = with_controls([Arm(name, use, changes=changes) for name in with_], without)
    if not ensemble:
        return single
    alone = [arm for arm in single if arm.use is None]
    base, strong = Arm(leading), Arm(leading, changes=changes)
    placebo = Arm(leading, use, changes=changes, placebo=True)
    others = (base, *((strong, placebo) if changes else (placebo,)))
    used = [arm for arm in single if arm.use is not None]
    controls = [_ensemble(base, other, ensemble) for other in others]
    best = _ensemble(base, Arm(leading, use, changes=changes), ensemble)
    student = (Arm("ce", use, changes=changes, teacher=best),) if distilled else ()
    return (*alone, *others[1:], *controls, *used, *student, best)


def _ensemble(base: Arm, other: Arm, n: int) -> Arm:
    return Arm(base.recipe, members=(base,) * n + (other,) * n)


def make_grid(
    numbers: Mapping[str, Sequence[int]],
    curation: Sequence[str],
    recipes: Sequence[str],
    uses: Sequence[Use],
) -> tuple[Arm, ...]:
    """The arms with synthetic images of a study: every number with every curation, recipe and use.

    Args:
        numbers: (C,) images per class of each number, by what was asked for.

    Raises:
        ConfigError: an unknown recipe or policy, the same thing twice, nothing of a kind, a number that adds nothing.
    """
    for what, given in (("number", numbers), ("curation", curation), ("recipe", recipes), ("use", uses)):
        if not len(given):
            raise ConfigError(f"the grid names no {what}", "give at least one")
    policies = ["+".join(parse_policy(text)) for text in curation]
    _check_once("recipe", [get_recipe(name).label for name in recipes])
    _check_once("curation", policies)
    _check_once("use", [use.describe() for use in uses])
    seen: dict[tuple[int, ...], str] = {}
    for number, wanted in numbers.items():
        counts = tuple(int(n) for n in wanted)
        if not sum(counts):
            raise ConfigError(f"the number {number!r} adds no image to any class", "leave it out, or ask for more")
        if counts in seen:
            raise ConfigError(
                f"the numbers {seen[counts]!r} and {number!r} add the same images",
                "name one of them: each counts as a comparison",
            )
        seen[counts] = number
    return tuple(
        Arm(recipe, use, number, counts, policy)
        for counts, number in seen.items() for policy in policies for recipe in recipes for use in uses
    )  # fmt: skip


def first_of(pool: ImageSet, wanted: Sequence[int]) -> ImageSet:
    """The first `wanted` (C,) images of each class of `pool`; fewer where it has fewer. Larger numbers contain smaller
    ones."""
    rank = np.zeros(len(pool), dtype=np.int64)
    for k in np.unique(pool.labels).tolist():
        mine = pool.labels == k
        rank[mine] = np.arange(mine.sum())
    return pool.select(np.flatnonzero(rank < np.asarray(wanted)[pool.labels]))


# -- what cannot be compared


def _check_once(what: str, names: Sequence[str]) -> None:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ConfigError(f"the {what} {twice[0]!r} is named twice", f"name each {what} once")


def check_arms(arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    """Raises ConfigError where arms or seeds cannot be told apart."""
    if not len(seeds):
        raise ConfigError("a comparison needs at least one seed of classifiers", "use --classify.seeds 3")
    _check_once("seed", [str(seed) for seed in seeds])
    _check_once("arm", [arm.name for arm in arms])


def check_sets(prepared: Prepared, synthetic: ImageSet | None) -> None:
    """Refuses sets that do not belong together.

    Raises:
        DataError: no test images, a class without real images, or synthetic images of other classes or another shape,
            or that are test images.
    """
    train, test = prepared.train, prepared.test
    if not len(test):
        raise DataError("there are no test images, so classifiers cannot be compared", "hold some out when preparing")
    for what, images in (("test", test), ("validation", prepared.val), ("synthetic", synthetic)):
        if images is not None and images.class_names != train.class_names:
            other = named(sorted(set(images.class_names) ^ set(train.class_names))) or "the same in another order"
            raise DataError(
                f"the {what} images have other classes than the training images: {other}",
                "use images of the same class names, in the same order",
            )
    missing = np.flatnonzero(np.bincount(train.labels, minlength=len(train.class_names)) == 0)
    if len(missing):
        raise DataError(
            f"{len(missing)} classes have no real training image: {named([train.class_names[k] for k in missing])}",
            "give each at least one, or leave the classes out",
        )
    if synthetic is None:
        return
    if synthetic.shape != train.shape:
        raise DataError(
            f"the synthetic images are {synthetic.shape} (H, W, C), the training images {train.shape}",
            "generate them with the model of this run",
        )
    tests = set(test.hashes)
    leaked = [i for i, h in enumerate(synthetic.hashes) if h in tests and np.ptp(synthetic.images[i])]  # but for blanks
    if leaked:
        raise DataError(
            f"{len(leaked)} synthetic images equal test images, such as {synthetic.ids[leaked[0]]}",
            "leave them out, and find out how the generator came to see the test images",
        )


def missing_classes(prepared: Prepared) -> list[str]:
    """Names of the classes that claims are made of and that no validation image has; all, if claims are of none."""
    names = prepared.train.class_names
    if not any(prepared.claimable):
        return list(names)
    return [names[k] for k in unvalidated(prepared.val, prepared.claimable)]


ARMS = make_arms()
PRIMARY = ARMS[-1].name
