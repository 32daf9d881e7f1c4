"""What crosses processes: the encoding of messages, and the subjects of hints. Truth never rides on it."""
