"""A kernel of our own configuration, built on this host from the distribution's source: boots in a fraction of the time,
for all that a microVM has is built in, and nothing else is looked for.

`source` is where its source comes from, `recipe` what is built how, as values, `build` does it."""
