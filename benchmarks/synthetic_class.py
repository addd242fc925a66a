"""How many of a generator's images a classifier of the training images takes for the class that was asked for.

    python benchmarks/synthetic_class.py lesions-16-folds

Of every split of a set of `benefit.py` whose generator is there: a support vector machine (RBF kernel, C 10, classes
weighted equally) of the pixels of all training images; mean over classes of the share that it finds right, of test
images and of synthetic ones, at most 200 of a class. It looks at test images: for a diagnosis; nothing is
chosen by it.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import benefit
from imbdiff.data.imageset import ImageSet
from results_file import write_result


def right(machine: SVC, images: ImageSet, most: int = 200) -> np.ndarray:
    """(C,) percent of each class."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.flatnonzero(images.labels == k))[:most] for k in range(len(images.class_names))]
    return 100 * np.array([(machine.predict(flat(images, own)) == k).mean() for k, own in enumerate(rows)])


def flat(images: ImageSet, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    x = np.asarray(images.images[rows])
    return x.reshape(len(x), -1) / 255.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=benefit.SETS)
    given = parser.parse_args()
    rows = []
    for split in benefit.SETS[given.set].splits:
        if not (benefit.KEPT / given.set / "generators" / f"recipe-{split}" / "facts.json").exists():
            continue
        data = benefit.prepared(given.set, split)
        images, _ = benefit.generated(given.set, split, data, "recipe", {})
        machine = make_pipeline(StandardScaler(), SVC(C=10, class_weight="balanced"))
        machine.fit(flat(data.train), data.train.labels)
        few = np.asarray(data.groups.of_class) == len(data.groups.names) - 1
        row: dict[str, float] = {"split": split}
        for name, kind in (("test images", data.test), ("synthetic", images)):
            found = right(machine, kind)
            row |= {f"{name}, all": round(float(found.mean()), 1), f"{name}, few": round(float(found[few].mean()), 1)}
        rows.append(row)
        print(row, flush=True)
    write_result(f"synthetic_class_{given.set.replace('-', '_')}", {"percent found right": rows}, config=vars(given))


if __name__ == "__main__":
    main()
