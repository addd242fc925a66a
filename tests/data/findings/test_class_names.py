import pytest

from imbdiff.data.findings.class_names import name_problems


def groups(names):
    return [sorted(group) for group, _ in name_problems(names)]


@pytest.mark.parametrize(
    "pair",
    [
        ("cat", "Cat"),
        ("cat", "cat "),
        ("sea-lion", "Sea lion"),
        ("café", "café"),
        ("cat", "c\u200bat"),
        ("ﬁsh", "FISH"),
    ],
)
def test_two_spellings_of_one_name(pair):
    assert sorted(pair) in groups([*pair, "dog"])


def test_a_name_beside_the_same_one_with_a_number():
    assert groups(["cat", "cat2", "cat (1)", "dog"]) == [["cat", "cat (1)", "cat2"]]


@pytest.mark.parametrize("names", [["train2", "b"], ["Test", "b"], ["valid_1", "b"]])
def test_names_of_splits(names):
    assert groups(names) == [[names[0]]]


@pytest.mark.parametrize(
    "names",
    [
        ["0", "1", "10", "11"],
        ["class1", "class2", "class10"],
        ["1-2", "1-3", "1"],
        ["trainer", "contest", "cat", "dog", "", "-", "蝴蝶", "蝴"],
    ],
)
def test_ordinary_names_are_in_order(names):
    assert name_problems(names) == []


def test_white_space_around_a_name():
    assert groups([" dog", "cat"]) == [[" dog"]]


def test_long_names_cost_nothing():
    assert name_problems(["1" * 200_000 + "a", "(" * 200_000, "_" * 100_000 + "1" * 100_000]) == []
