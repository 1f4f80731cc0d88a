"""Tasks: raw counts of each image, and the metrics they give."""
