"""Parameter-updating baselines: one file a tuner, and the one training loop."""
