"""Extractors, statistics, one file per metric, by class and by group."""
