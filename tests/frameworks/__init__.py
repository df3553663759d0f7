"""Servers of frameworks, each with clients that no one here wrote."""
