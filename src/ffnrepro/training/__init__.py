"""What keeps a training alive: loop, loader workers, checkpoints, lease, stop requests, processes, progress."""
