"""Labelled images: sources of every kind, splits, tails, batch samplers, augmentation, inspection.

`sources` opens a source by its name, `source` is what all of them offer, `reading` and `cache` decode their images,
`labels` gives classes their numbers, `splits` makes an experiment's sets of them, `inspect` reports what they hold.

The room is larger than its budget. Folders, zip files, lists and the trees of benchmarks are read here and not by a
library, because damaged, hostile and mislabelled files are what users bring: all are named in one error with a remedy.
"""
