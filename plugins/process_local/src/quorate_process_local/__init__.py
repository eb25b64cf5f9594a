"""quorate plugin."""
