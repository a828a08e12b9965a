"""TextNAS: architecture search for text representation (arXiv 1912.10729)."""
