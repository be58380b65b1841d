"""The processes that run the application: gunicorn's master and its workers."""
