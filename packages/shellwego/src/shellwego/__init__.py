"""ShellWeGo: a sovereign cloud on your own servers."""
