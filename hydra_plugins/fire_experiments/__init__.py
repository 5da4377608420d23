"""What Hydra finds by itself here: how the jobs of a sweep run on this machine."""
