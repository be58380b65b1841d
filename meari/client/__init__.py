"""A running service, seen from outside: requests in JSON → answers, and errors of one line.

client.py       a service with typed calls and answers; async_client.py: the same for asyncio
calls.py        each call: path, body and type of its answer; fields.py: keyword arguments; answers.py: dataclasses
streams.py      a text that comes piece by piece
service.py      bytes over HTTP, sent again when the service asks for it; which model is meant
connections.py  connections that are kept between requests; async_connections.py: those of asyncio
download.py     a file by its URL
errors.py       the ways in which a request can fail

No module of the project is imported here: the client knows the HTTP contract alone.
"""
