"""Several models' predictions as one: combined, weighed, learned, exported."""
