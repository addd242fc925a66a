"""Classifier networks, losses, the loop, the judge, the arms and the verdict."""
