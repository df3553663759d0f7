"""What a message looks like on the wire: frames, and how they are compressed."""
