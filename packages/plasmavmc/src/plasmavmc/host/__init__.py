"""All that is privileged, and all child processes. `operations` are the words, `helper` (root) does them, `client` asks."""
