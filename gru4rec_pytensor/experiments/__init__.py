"""What `run_experiments` runs: the tables of the paper, its parameter search, its claims; and how they are shown."""
