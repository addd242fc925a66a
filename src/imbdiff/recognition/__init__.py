"""Classifier networks, losses, curation, the judge, the arms and the verdict.

The room is larger than its budget: the literature's recipes (nineteen, with their losses, heads and mixtures), curation
in feature space and the corrected verdict are what a comparison with synthetic images is measured by.
"""
