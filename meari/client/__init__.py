"""A running service, seen from outside: requests in JSON → answers, and errors of one line.

errors.py    what can go wrong
service.py   whole answers and streams over HTTP, with another try where the service says to come again
models.py    which of its models is meant, and what it says of it

Knows the HTTP contract and nothing of how it is kept: no module of the project is imported here.
"""
