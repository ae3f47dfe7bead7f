"""Writing rows, under the ordering rule."""
