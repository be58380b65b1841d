"""A running service, seen from outside: requests in JSON → answers, and errors of one line.

errors.py    the ways in which a request can fail
service.py   whole answers and streams over HTTP, tried again when the service asks for it; which model is meant

No module of the project is imported here: the client knows the HTTP contract alone.
"""
