"""The stages as plain functions on objects, one loop over them, and the run folder as an adapter.

The room is larger than its budget: what a folder of another run, other options, altered files or a killed command means
is decided and worded here, and measuring without a run and the study of many arms are stages too.
"""
