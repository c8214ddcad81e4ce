"""Filters and packets that every executor of a predicate must agree on."""
