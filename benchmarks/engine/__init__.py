"""Peak memory and step time of one training step, ours against the peers', measured alternately in one run."""
