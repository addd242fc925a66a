"""A learned word for each class (textual inversion, Gal et al. 2023): a vector in the input of the frozen text encoder.

What is trained is C vectors; the text encoder is evaluated in every step, on the prompts of the batch. For classes
whose names say nothing to a text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imbdiff.diffusion.codecs.autoencoder import variant_of
from imbdiff.diffusion.pretrained import Pretrained, quietly
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.tables import optional


class LearnedTokens(nn.Module):
    """Vectors of tokens: those of the vocabulary, frozen, and behind them learned ones."""

    def __init__(self, words: nn.Embedding, count: int) -> None:
        super().__init__()
        self.words = words
        self.learned = nn.Parameter(torch.zeros(count, words.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        size = self.words.num_embeddings
        known = self.words(ids.clamp_max(size - 1))
        learned = self.learned[(ids - size).clamp_min(0)].to(known.dtype)
        return torch.where((ids >= size)[..., None], learned, known)


class TokenEncoder(nn.Module):
    """The text encoder of a pipeline, frozen, with `count` learned tokens.

    Raises:
        RunError: it cannot be loaded.
    """

    def __init__(self, pretrained: Pretrained, count: int, half: bool) -> None:
        super().__init__()
        transformers = optional("transformers", "pretrained", "a text encoder")
        try:
            with quietly():
                self.text = transformers.CLIPTextModel.from_pretrained(
                    pretrained.folder / "text_encoder", use_safetensors=True, local_files_only=True,
                    torch_dtype=torch.bfloat16 if half else torch.float32, variant=variant_of(pretrained.network),
                )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            raise RunError(f"the text encoder of {pretrained.name} cannot be loaded: {error}", "download it") from error
        self.text.requires_grad_(False)
        self.text.set_input_embeddings(LearnedTokens(self.text.get_input_embeddings(), count))

    @property
    def tokens(self) -> Any:
        """Its `LearnedTokens`."""
        return self.text.get_input_embeddings()

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) token numbers -> (B, L, d)."""
        return self.text(ids)[0]


def token_names(names: Sequence[str]) -> list[str]:
    """A token for each class, "<wild-dog>": what a prompt has in place of its name."""
    found: list[str] = []
    for k, name in enumerate(names):
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or f"class-{k}"
        found.append(f"<{plain}>" if f"<{plain}>" not in found else f"<{plain}-{k}>")
    return found


def begin(pretrained: Pretrained, tokens: Sequence[str], prompts: Sequence[str], words: Sequence[str]) -> Any:
    """What training starts from.

    Args:
        tokens: see `token_names`.
        prompts: with them.
        words: whose vectors, on average, a token begins with.

    Returns:
        (C + 1, L) token numbers of the prompts, the empty one last, and the (C, d) vectors.

    Raises:
        ConfigError: the pipeline has not one CLIP text encoder.
    """
    if pretrained.pipeline != "StableDiffusionPipeline":
        raise ConfigError(
            f"--model.adapt tokens is for Stable Diffusion 1 and 2, and {pretrained.name} is a {pretrained.pipeline}",
            "use --model.adapt lora",
        )
    transformers = optional("transformers", "pretrained", "a text encoder")
    encoder = TokenEncoder(pretrained, len(tokens), False)
    with quietly():
        tokenizer = transformers.CLIPTokenizer.from_pretrained(pretrained.folder / "tokenizer")
    table = encoder.tokens.words
    own = [tokenizer(word or "x", add_special_tokens=False)["input_ids"] for word in words]
    vectors = torch.stack([table.weight[ids].float().mean(0) for ids in own])
    tokenizer.add_tokens(list(tokens))
    length = tokenizer.model_max_length
    ids = torch.tensor(tokenizer([*prompts, ""], padding="max_length", max_length=length, truncation=True)["input_ids"])
    first, size = tokenizer.convert_tokens_to_ids(list(tokens))[0], table.num_embeddings
    return torch.where(ids >= first, ids - first + size, ids), vectors
