"""
A model in a diffusers program
==============================

`to_diffusers` writes weights, scheduler, the pipeline itself and a model card into a folder, which loads where
diffusers is installed and this package is not.
"""

# %%
# A small transformer, hardly trained: what is shown is the way, not the images.

import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import imbdiff
from imbdiff.integrations.pipeline import to_diffusers

data = imbdiff.prepare("digits", imbalance_factor=20)
config = imbdiff.override(imbdiff.preset("tiny"), {"train.images": 640, "model.backbone": "dit-tiny"})
model = imbdiff.train(data, config, quiet=True)

folder = tempfile.TemporaryDirectory()
os.environ["HF_MODULES_CACHE"] = f"{folder.name}/modules"  # where diffusers keeps code of pipelines
to_diffusers(model, f"{folder.name}/digits")
print(*sorted(path.name for path in Path(f"{folder.name}/digits").iterdir()), sep="\n")

# %%
# From here on it is diffusers alone.

from diffusers import DiffusionPipeline  # noqa: E402

pipe = DiffusionPipeline.from_pretrained(f"{folder.name}/digits", trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
images = pipe([0, 1, "2", "3"], guidance_scale=1.8, num_inference_steps=20).images

figure, axes = plt.subplots(1, 4, figsize=(4, 1.2))
for axis, image in zip(axes, images, strict=True):
    axis.imshow(image, cmap="gray")
    axis.axis("off")
plt.show()
folder.cleanup()
