"""What all domains need: configuration, run directories, checkpoints, the metric log, boundaries, seeding."""
