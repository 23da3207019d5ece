"""The code that runs a training and keeps it alive: loop, loader, checkpoints, lease, stop requests, processes, progress."""
