"""The HTTP service: requests → answers by the models of a folder of bundles. Must not know: torch, training, bulk.

From the outside in, each layer above those that it uses:

    process/      gunicorn: its configuration, its workers, HTTP on a connection, the start
    app.py        settings → the Flask application
    routes/       one request: read, handled, answered, noted (exchange.py); errors and pages
    openapi/      the contract as a document
    service.py    the parts that the routes share, and the bundles that are served
    reload.py     changes of the bundles' folder, and wishes of admins
    openai/       OpenAI's shape of requests and answers
    requests/     admission, parsing, cross-origin rules
    clients.py    their connections, and the watch over those that go away
    tracing.py    OpenTelemetry, where it is requested; spans.py: one request's span
    metrics.py    Prometheus; metric_families.py: names, types and bounds
    settings.py   environment variables; log.py: lines on stderr; error_body.py: bodies of errors
    workers.py    state that the workers of a host share
"""
