"""diffusers pipeline and folders; imbalanced-learn's interface for images."""
