"""Records: schema, store, provenance, statistics."""
