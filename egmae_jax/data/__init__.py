"""From image files to batches: data sets, duplicates, splits, decoding, order."""
