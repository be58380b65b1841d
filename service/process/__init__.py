"""The processes that run the application: gunicorn's master process and its workers."""
