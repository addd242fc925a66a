"""
Measure any images against others
=================================

Distances, precision and recall need no generator of this package: two sets of images with labels will do. Here the
"synthetic" images are real ones that were changed, so that the right answer is known.
"""

# %%
# Four sets: real images that are no test images, the same with noise, with every class confused, and too few of them.

import matplotlib.pyplot as plt
import numpy as np

import imbdiff
from imbdiff.data.imageset import ImageSet

data = imbdiff.prepare("digits", imbalance_factor=1)
train, rng = data.train, np.random.default_rng(0)
noise = rng.normal(0, 40, train.images.shape)
sets = {
    "real": train,
    "with noise": ImageSet((train.images + noise).clip(0, 255).astype(np.uint8), train.labels, train.class_names),
    "classes confused": ImageSet(train.images, rng.permutation(train.labels), train.class_names),
    "20 images": train.select(rng.choice(len(train), 20, replace=False)),
}
judges, _ = imbdiff.judges(data, steps=30)

# %%
# A number that the images cannot support is refused, with the reason.

rows = {}
for name, images in sets.items():
    found = imbdiff.evaluate(images, data.test, None, data.groups, judges, reference_name="test")
    rows[name] = {n["metric"]: n for n in found["numbers"] if n["scope"] == "all" and n["extractor"] == "random-conv"}
metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
for metric in metrics:
    values = [row[metric]["value"] if metric in row else None for row in rows.values()]
    print(f"{metric:<12}", *("  refused" if value is None else f"{value:9.3f}" for value in values))
print(rows["20 images"][metrics[0]])

# %%
# The images themselves.

figure, axes = plt.subplots(3, 8, figsize=(8, 3))
for row, (name, images) in zip(axes, list(sets.items())[:3], strict=True):
    for axis, image, label in zip(row, images.images, images.labels, strict=False):
        axis.imshow(image.squeeze(), cmap="gray")
        axis.set_title(str(label), fontsize=8)
        axis.axis("off")
    print(name)
plt.show()
