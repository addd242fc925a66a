"""WebDataset shards, on a disk or on a server."""
