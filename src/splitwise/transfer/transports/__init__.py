"""Ways of putting blocks into another machine's cache, behind one interface (``base``)."""
