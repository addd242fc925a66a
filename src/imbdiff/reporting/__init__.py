"""Plots, the HTML report, the comparison page, preview grids."""
