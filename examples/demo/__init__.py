"""The main job, shown: an image becomes a URL, served from microVMs. Its parts also serve tests and benchmarks."""
