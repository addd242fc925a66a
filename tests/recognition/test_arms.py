"""Arms and grids by name, and what cannot be compared."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.arms import (
    ARMS,
    PRIMARY,
    Arm,
    check_arms,
    check_sets,
    first_of,
    make_arms,
    make_grid,
    missing_classes,
    with_controls,
)
from imbdiff.recognition.recipes import RECIPES
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import ConfigError, DataError

from .conftest import NAMES, make_prepared, make_set

NUMBERS = {"0.5": (0, 10, 16), "1.0": (0, 30, 36)}


def grid_of(**changes: Any) -> tuple[Arm, ...]:
    asked = {"numbers": NUMBERS, "curation": ["none"], "recipes": ["ce"], "uses": [Use()], **changes}
    return make_grid(*asked.values())


def test_the_default_arms_and_those_that_no_comparison_may_lack() -> None:
    assert [a.name for a in ARMS if not a.members and a.teacher is None] == [
        "CE", "CE + class-balanced resampling", "balanced softmax", "balanced softmax, strong augmentation",
        "repeated real + balanced softmax", "synthetic + CE", "synthetic + balanced softmax",
    ]  # fmt: skip
    assert ARMS[-1].name == PRIMARY
    assert ARMS[-1].needs_synthetic
    names = [(a.recipe, a.needs_synthetic) for a in make_arms(("drw",), ("cutmix",), ensemble=0)]
    alone = ["ce", "resampling", "balanced-softmax", "drw", "cutmix"]
    assert names == [*((name, False) for name in alone), ("cutmix", True)]


@pytest.mark.parametrize("n", [1, 3])
def test_ensembles_are_compared_with_others_as_large_that_lack_one_thing(n: int) -> None:
    arms = make_arms(ensemble=n)
    base, best = Arm("balanced-softmax"), arms[-1]
    with_images = next(a for a in arms if a.recipe == base.recipe and a.use is not None and not a.placebo)
    assert best.members == (base,) * n + (with_images,) * n
    others = [a.members[n:] for a in arms if a.members and a is not best]
    assert others == [
        (base,) * n,
        (replace(with_images, use=None),) * n,  # as strongly changed, and no synthetic images
        (replace(with_images, placebo=True),) * n,  # real images in their place
    ]
    for arm in arms:
        assert all(member in arms for member in arm.members)  # each kind of network is an arm by itself
        trained = arm.networks(5)
        assert len(set(trained)) == len(trained) == max(1, 2 * n * bool(arm.members))
        assert trained[0][1] == 5
    assert len({arm.name for arm in arms}) == len(arms)
    # networks that several arms have are trained once, and no two of one kind alike
    networks = {network for arm in arms for network in arm.networks(5)}
    # of CE and resampling, without, three kinds with, CE with, and the student
    assert len(networks) == 2 + 2 * n + 3 * n + 1 + 1
    (student,) = (a for a in arms if a.teacher is not None)
    assert student.teacher == best
    assert student not in make_arms(ensemble=n, distilled=False)


def test_an_ensemble_or_a_student_needs_what_its_networks_need() -> None:
    base, with_images = Arm("ce"), Arm("ce", Use())
    both = Arm("ce", members=(base, with_images))
    assert (both.needs_synthetic, both.sees_synthetic) == (True, False)
    student = Arm("ce", teacher=both)
    assert (student.needs_synthetic, student.sees_synthetic) == (True, False)
    assert not Arm("ce", Use(), teacher=Arm("ce", members=(base, base)), placebo=True).needs_synthetic
    assert not Arm("ce", Use(), placebo=True).needs_synthetic


def test_names_files_and_facts_of_arms() -> None:
    assert Arm("ce", Use(), label="mine").name == "mine"
    assert Arm("ldam-drw", Use()).file == "synthetic+ldam-drw"
    assert len({Arm(name, use).file for name in RECIPES for use in (None, Use())}) == 2 * len(RECIPES)
    use = Use(0.5, 0.25, prior="effective")
    assert Arm("balanced-softmax", use).to_json() == {
        "name": "synthetic + balanced softmax",
        "recipe": "balanced-softmax",
        "label": "balanced softmax",
        "use": asdict(use),
        "needs_synthetic": True,
        "members": [],
        "prior": "effective",
        "placebo": False,
        "changes": 0.0,
        "teacher": None,
    }
    assert [Arm(n).prior for n in ("ce", "focal", "remix", "ldam")] == [None, None, "train", "train"]
    assert Arm("ce", use).prior is None
    with pytest.raises(ConfigError, match="did you mean ldam-drw"):
        Arm("ldam-drv").to_json()


def test_the_grid_is_every_combination_in_a_stated_order() -> None:
    arms = grid_of(
        curation=["none", "no-copies+agreement"], recipes=["ce", "balanced-softmax"], uses=[Use(), Use(weight=0.5)]
    )
    assert len(arms) == len({a.name for a in arms}) == 2 * 2 * 2 * 2
    assert arms[0].name == "0.5: CE, weight 1"
    assert arms[-1].name == "1.0, agreement+no-copies: balanced softmax, weight 0.5"
    assert arms[-1].wanted == (0, 30, 36)


def test_long_numbers_are_cut_in_names_and_no_class_name_is_in_a_file() -> None:
    totals = ",".join(f"class {k}=90" for k in range(1000))
    one, two = grid_of(numbers={totals: (0, 1, 2), totals + "1": (0, 1, 3)})
    assert one.name != two.name
    assert len(one.name) < 110
    assert one.name.startswith("class 0=90,class 1=90")
    assert one.file == two.file == "synthetic+ce"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipes": ["balanced-softmx"]}, "did you mean balanced-softmax"),
        ({"curation": ["agrement"]}, "did you mean agreement"),
        ({"numbers": {"a=1": (0, 0, 0)}}, "'a=1' adds no image"),
        ({"numbers": {"1.0": (0, 1, 2), "auto": (0, 1, 2)}}, "'1.0' and 'auto' add the same images"),
        ({"recipes": ["ce", "ce"]}, "the recipe 'CE' is named twice"),
        ({"curation": ["agreement+no-copies", "no-copies+agreement"]}, "named twice"),
        ({"uses": []}, "names no use"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        grid_of(**changes)
    assert said in str(error.value)


def test_the_first_of_each_class_and_nested() -> None:
    labels = np.array([2, 0, 2, 0, 2, 1], dtype=np.int64)
    images = ImageSet(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), labels, NAMES)
    assert first_of(images, (1, 0, 2)).images.ravel().tolist() == [0, 1, 2]
    assert first_of(images, (2, 5, 2)).images.ravel().tolist() == [0, 1, 2, 3, 5]  # fewer where there are fewer
    pool = make_set((0, 30, 36), 9)
    assert set(first_of(pool, (0, 10, 16)).ids) < set(first_of(pool, (0, 30, 36)).ids)


def test_arms_that_cannot_be_told_apart() -> None:
    for arms, seeds, said in (
        ([Arm("ce")], (1, 1), "the seed '1' is named twice"),
        ([Arm("ce")], (), "at least one seed"),
        ([Arm("ce"), Arm("ce", Use(0.5)), Arm("ce", Use(0.2))], (0,), "the arm 'synthetic . CE' is named twice"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_arms(arms, seeds)
    with pytest.raises(ConfigError, match="did you mean resampling"):
        make_arms(("ce", "resamplin"), ())
    with pytest.raises(ConfigError, match="the recipe 'CE' is named twice"):
        make_arms(("ce", "crt", "ce"), ())


def test_what_no_comparison_may_lack_is_added() -> None:
    """What the recipe does and what the images do could not be told apart otherwise."""
    made = with_controls([Arm("ce", label="mine"), Arm("cutmix", Use())])
    assert [(arm.recipe, arm.needs_synthetic) for arm in made] == [
        ("resampling", False), ("balanced-softmax", False), ("cutmix", False), ("ce", False), ("cutmix", True),
    ]  # fmt: skip


def test_networks_inside_an_ensemble_are_no_controls() -> None:
    ensemble = Arm("balanced-softmax", members=(Arm("balanced-softmax"), Arm("balanced-softmax", Use())))
    assert Arm("balanced-softmax") in with_controls([ensemble, Arm("ce", changes=0.5)])
    assert Arm("ce") in with_controls([ensemble, Arm("ce", changes=0.5)])


def _named(images: ImageSet, *names: str) -> ImageSet:
    return ImageSet(images.images, images.labels, names)


def test_images_of_other_classes_or_shapes_are_refused_by_name(prepared: Any) -> None:
    made = make_set((0, 5, 5), 9)
    for synthetic, said in (
        (_named(made, "left", "centre", "right"), "other classes.*'centre', 'middle'"),
        (_named(made, "left", "right", "middle"), "the same in another order"),
        (_named(made, "left", "middle", "right", "top"), "other classes.*'top'"),
        (ImageSet(made.images[:, :, :8], made.labels, made.class_names), "8, 8, 1"),
    ):
        with pytest.raises(DataError, match=rf"synthetic images.*{said}"):
            check_sets(prepared, synthetic)
    for part, said in (("test", "test"), ("val", "validation")):
        kept = getattr(prepared, part)
        setattr(prepared, part, _named(kept, "left", "middle", "right", *(f"class {i}" for i in range(13))))
        with pytest.raises(DataError, match=f"the {said} images have other classes.* and 3 more"):
            check_sets(prepared, None)
        setattr(prepared, part, kept)
    whole = prepared.train
    prepared.train = whole.select(np.flatnonzero(whole.labels != 1))
    with pytest.raises(DataError, match="1 classes have no real training image: 'middle'"):
        check_sets(prepared, None)
    prepared.train, prepared.test = whole, prepared.test.select([])
    with pytest.raises(DataError, match="no test"):
        check_sets(prepared, None)


def test_a_test_image_among_the_synthetic_ones_is_noticed_but_for_blanks(prepared: Any) -> None:
    made, test = make_set((0, 5, 5), 9), prepared.test
    images = np.concatenate([made.images, test.images[:2]])
    leaked = ImageSet(images, np.concatenate([made.labels, test.labels[:2]]), made.class_names)
    with pytest.raises(DataError, match="2 synthetic images equal test images, such as 10"):
        check_sets(prepared, leaked)
    made.images[0] = test.images[0] = 7
    prepared.test = ImageSet(test.images, test.labels, test.class_names)
    check_sets(prepared, ImageSet(made.images, made.labels, made.class_names))


def test_classes_without_validation_images_count_where_claims_are_made() -> None:
    prepared = make_prepared(make_set((8, 8, 0), 1))
    assert missing_classes(prepared) == ["right"]
    prepared.claimable = (True, True, False)
    assert missing_classes(prepared) == []
    prepared.claimable = (False,) * 3
    assert missing_classes(prepared) == list(NAMES)
