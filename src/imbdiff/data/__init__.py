"""Sources of images, class statistics, long-tail profiles, splits, batch samplers, augmentation."""
