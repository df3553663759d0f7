"""A soak: random mixes of everything for as long as one likes, checked by clients of other libraries.

`python -m soak` in tests/ starts it; `make soak MINUTES=n` does that. Three kinds of processes take part: `__main__`
draws a plan for each round from the seed and compares what the others say; `server` publishes, with wsfast, once with
the core and once with its twin in plain Python; `oracle` is the clients, and knows nothing of wsfast.
"""
