"""From label files and videos to clips: labels, index, manifest, sampling, decoding, transforms."""
