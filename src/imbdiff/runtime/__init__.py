"""What every room stands on: errors, atomic files, checkpoints, named random streams, collectives, logging.

The room is larger than its budget by the check that a compiled network's gradients are right (torch.compile's are not
always), and by the tables' entries from other packages.
"""
