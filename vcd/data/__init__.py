"""Images: where they come from (one file a data set), the order they are trained in, and their degradation."""
