"""What Hydra finds by itself here: how a sweep of an experiment becomes jobs, and how the jobs run on this machine."""
