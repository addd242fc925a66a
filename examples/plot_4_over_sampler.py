"""
An over-sampler for arrays of images
====================================

:class:`imbdiff.DiffusionOverSampler` has imbalanced-learn's interface: ``fit_resample(X, y)``. It belongs behind the
split into training and test images, so that no model has seen the latter.
"""

# %%
# Two classes of digits, one of them rare.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from imbdiff import DiffusionOverSampler

digits = load_digits()
X, y = (digits.images * (255 / 16)).astype(np.uint8), digits.target
keep = np.concatenate([np.flatnonzero(y == 3)[:100], np.flatnonzero(y == 8)[:15]])
X, y = X[keep], y[keep]

# %%
# Real images come first, synthetic ones behind them. So short a training is for this page only.

options = {"train.images": 8_000, "model.backbone": "mlp-384", "model.process": "ddpm-cosine-v"}
sampler = DiffusionOverSampler(sampling_strategy="auto", random_state=0, options=options)
X_more, y_more = sampler.fit_resample(X, y)
print(np.bincount(y)[[3, 8]], "->", np.bincount(y_more)[[3, 8]], sampler.sampling_strategy_)

# %%
figure, axes = plt.subplots(2, 10, figsize=(10, 2.2))
for axis, image in zip(axes.flat, [*X[y == 8][:10], *X_more[len(X) :][:10]], strict=True):
    axis.imshow(image, cmap="gray")
    axis.axis("off")
axes[0, 0].set_title("real", loc="left")
axes[1, 0].set_title("synthetic", loc="left")
plt.show()
