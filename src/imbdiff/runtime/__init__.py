"""What every room stands on: errors, atomic files, checkpoints, named random streams, collectives, logging."""
