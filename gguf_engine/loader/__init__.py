"""A name to local files that may be trusted."""
