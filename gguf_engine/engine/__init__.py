"""Many requests, one loop, one thread."""
