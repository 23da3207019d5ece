"""Label files and videos: labels, index, manifest, decoding, frame cache, and the built-in data set."""
