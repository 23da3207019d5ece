"""TSM and the Frame Flexible Network on ResNets, and their weights."""
