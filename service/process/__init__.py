"""The processes around the application: gunicorn's workers, what they share, how they end, who is still listening."""
