"""Encoding of messages for the wire: frames and compression."""
