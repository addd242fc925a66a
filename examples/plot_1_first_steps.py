"""
First steps: from a long tail to a verdict
==========================================

Ten classes of handwritten digits, 110 images of the most frequent and 2 of the rarest. A generator is trained on them
and gives every class as many images as the largest has; classifiers with and without these are compared on test images.
Everything is far too short here to be good: a run of three minutes is ``imbdiff run digits --preset demo``.
"""

# %%
# The images
# ----------
# :func:`imbdiff.prepare` cuts a long tail out of a balanced set, holds out test images, and names class groups.

import matplotlib.pyplot as plt
import numpy as np

import imbdiff
from imbdiff.recognition.arms import make_arms

data = imbdiff.prepare("digits", imbalance_factor=50)
print(dict(zip(data.stats.names, data.stats.counts, strict=True)))
print({group: data.groups.classes(group) for group in ("many", "medium", "few")})

# %%
# The generator
# -------------
# A preset has all options; any of them can be given anew. 384,000 images pass through the network in ``demo``.

config = imbdiff.override(imbdiff.preset("demo"), {"train.images": 64_000, "seed": 1})
model = imbdiff.train(data, config, quiet=True)
numbers = imbdiff.images_to_draw("equal", data.stats)
synthetic = imbdiff.sample(model, numbers, config, quiet=True)
print(dict(zip(data.stats.names, numbers, strict=True)))

# %%
# Real images of each class above, generated ones below; of class 9 there are two real ones.

figure, axes = plt.subplots(6, 10, figsize=(10, 6))
for axis in axes.flat:
    axis.axis("off")
for label, name in enumerate(data.stats.names):
    axes[0, label].set_title(f"{name} ({data.stats.counts[label]})")
    for row, images in ((0, data.train), (3, synthetic)):
        of_class = images.images[np.flatnonzero(images.labels == label)[:3]]
        for i, image in enumerate(of_class):
            axes[row + i, label].imshow(image.squeeze(), cmap="gray")
plt.show()

# %%
# What they are worth
# -------------------
# Distances to the test images, with intervals. *Judges* are networks that measure and are used for nothing else.

judges, _ = imbdiff.judges(data, steps=30)
found = imbdiff.evaluate(synthetic, data.test, data.train, data.groups, judges, reference_name="test")
for number in found["numbers"]:
    if (number["scope"], number["reference"]) == ("all", "test") and number["value"] is not None:
        print(f"{number['metric']:<12} {number['extractor']:<24} {number['value']:.3f}")

# %%
# Classifiers with and without the synthetic images, at equal steps. 20 steps of two seeds settle nothing; the sentence
# says what they showed.

arms = make_arms((), ("balanced-softmax",), ensemble=0)  # those that no comparison lacks are added
result = imbdiff.classify(data, synthetic, arms=arms, primary=arms[-1].name, steps=20, seeds=(0, 1))
print(result.verdict.sentence)
