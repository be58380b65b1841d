"""What Prometheus is told. docs/metrics.md describes every metric.

    families.py  the metrics: names, types, labels, bounds
    requests.py  a request that has ended → what is told of it
    worker.py    the metrics of one worker, and the exposition text for all workers of the host

Nothing here knows Flask.
"""

from meari.service.metrics.worker import CONTENT_TYPE, Metrics, WorkerFigures

__all__ = ["CONTENT_TYPE", "Metrics", "WorkerFigures"]
