"""Methods of novel-view synthesis: each a ``System`` with its settings, networks and losses, registered as an entry point ``npbgpp.methods``."""
