"""Codec, process, backbones and conditioner, guidance, and `generate`: from labels and seeds to images."""
