"""
What re-balancing does without any synthetic image
==================================================

Synthetic images re-balance classes as a side effect, so that every comparison has arms that re-balance without them:
three recipes on the same long tail, at equal steps and augmentation.
"""

# %%
# `make_arms` gives single networks of the recipes that are named.

import matplotlib.pyplot as plt

import imbdiff
from imbdiff.recognition.arms import make_arms

data = imbdiff.prepare("digits", imbalance_factor=50)
arms = make_arms(("ce", "resampling", "balanced-softmax"), (), ensemble=0)
result = imbdiff.classify(data, None, arms=arms, steps=30, seeds=(0,), adjust=False)

# %%
# Accuracy on test images by class group. Cross-entropy gives rare classes away; the other two do not.

groups = ("many", "medium", "few")
figure, axis = plt.subplots(figsize=(7, 3.5))
for i, arm in enumerate(result.arms):
    accuracy = [arm.test.mean.groups[group] for group in groups]
    axis.bar([x + 0.25 * i for x in range(3)], accuracy, width=0.25, label=arm.arm.name)
    print(f"{arm.arm.name:<30} balanced accuracy {arm.test.mean.balanced_accuracy:.3f}")
axis.set_xticks([x + 0.25 for x in range(3)], groups)
axis.set_ylim(0, 1)
axis.set_ylabel("accuracy")
axis.legend(loc="lower left")
plt.show()
