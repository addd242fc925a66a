"""The stages as plain functions on objects, and the run folder as an adapter over them."""
