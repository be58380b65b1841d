"""From token ids and log-probabilities to the bodies of answers, whole, in pieces or as a stream."""
