"""The slow door: pages, status, metrics and titles, on the node's own event loop."""
