"""Serving a bundle: the server, its paths and what it watches."""
