"""One file a shape of the tables, in the order of their numbers."""
