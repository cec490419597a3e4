"""The page server and the lazy-pages daemon."""
