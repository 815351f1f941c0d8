"""From image files to batches: data sets, decoding, near-duplicates, splits, training order."""
