"""One file a dataset, in its owner's layout."""
