"""From image files to batches: data sets, decoding, duplicates, splits, order of training."""
