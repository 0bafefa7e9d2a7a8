"""From shards to batches: order, augmentation, stream."""
