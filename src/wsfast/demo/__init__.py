"""A demonstration: market ticks from a live server to real clients, by two functions in turn.

`server` broadcasts and compares, `clients` is the other process, and `ticks` is what they say to each other.
"""
