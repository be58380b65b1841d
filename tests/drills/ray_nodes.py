"""A Ray cluster of several nodes on this machine, as a process: `python ray_nodes.py NUM_NODES`.

Input: on standard input a line `kill`, which kills the newest node with all that runs on it, or the end, which ends the
cluster. Output: on standard output the address, then a line for each node killed. Must not know: what the cluster does.

Each node has one CPU for work, the head as well. Two waits of Ray's are too short for a busy machine: a raylet waits no
longer than 15 s for its agent (the files that the agent would write without a dashboard are written before), a node
no longer than 30 s until the cluster knows it.
"""

from __future__ import annotations

import inspect
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import ray._private.services as services
from ray.cluster_utils import Cluster

STORE_BYTES: Final = 80 << 20
PORT_FILES: Final = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
SECONDS_TO_REGISTER: Final = 120


@contextmanager
def patient_starts() -> Iterator[None]:
    """Start nodes without agents, and wait for each for SECONDS_TO_REGISTER."""
    start, get_node = services.start_raylet, services.get_node
    signature = inspect.signature(start)

    def started(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name in PORT_FILES:
            (Path(given["session_dir"]) / f"{name}_{given['node_id']}").write_text("-1")
        return start(*args, **kwargs)

    def registered(*args: Any) -> Any:
        deadline = time.monotonic() + SECONDS_TO_REGISTER
        while True:
            try:
                return get_node(*args)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    services.start_raylet, services.get_node = started, registered
    try:
        yield
    finally:
        services.start_raylet, services.get_node = start, get_node


def node() -> dict[str, Any]:
    """Return the arguments of a node."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        agent, store = (one.getsockname()[1] for one in sockets)
    return {
        "num_cpus": 1,
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
        "include_log_monitor": False,
        "runtime_env_agent_port": agent,
        "object_manager_port": store,
    }


def head() -> Cluster:
    """Start a cluster of one node, whose workers do not give way to all else on a busy machine."""
    with patient_starts():
        own = {"no_monitor": True, "_system_config": {"worker_niceness": 0}}
        return Cluster(initialize_head=True, head_node_args={**node(), **own})


def main() -> None:
    """Start the cluster and do what is asked."""
    cluster = head()
    with patient_starts():
        nodes = [cluster.add_node(wait=False, **node()) for _ in range(int(sys.argv[1]) - 1)]
    cluster.wait_for_nodes(timeout=120)
    print(cluster.address, flush=True)  # noqa: T201
    for line in sys.stdin:
        if line.strip() == "kill":
            node_to_kill = nodes.pop()
            node_to_kill.all_processes["raylet"][0].process.kill()
            print("killed", flush=True)  # noqa: T201
            cluster.remove_node(node_to_kill, allow_graceful=False)
    cluster.shutdown()


if __name__ == "__main__":
    main()
