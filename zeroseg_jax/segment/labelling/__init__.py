"""Label maps from encoded images and texts: scores of segments, background rules, enlarging, tiles."""
