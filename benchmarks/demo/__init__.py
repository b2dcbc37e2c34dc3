"""`make demo`: one small LSTM writes ten digits from ten initial states."""
