"""service/: bundle + requests → answers. Flask at the edge, the engine inside."""
