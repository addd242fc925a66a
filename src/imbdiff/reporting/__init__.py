"""Plots, the HTML pages from one template, preview grids.

A section is a function from results to blocks. The room is larger than its budget: five kinds of pages (run,
inspection, evaluation, comparison, study) each say what their numbers mean, up to 1,000 classes.
"""
