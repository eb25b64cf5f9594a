"""Feeds random bytes to everything in the core that reads what others wrote (``make fuzz``)."""
