"""Graphs of filters, functions and sinks as plain values: expressions, their text, their checks, their layout."""
