"""What spans distributions: the behaviours of the whole system, with real agents, workers and stores."""
