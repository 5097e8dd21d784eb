"""Images: where they come from (one file per data set), the order they are trained in, and their degradation."""
