"""Rings -> batches -> sinks: numpy, pcapng, packets one at a time. Works from a file as well as from a map."""
