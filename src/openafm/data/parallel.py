"""How many processes the data steps run in, here or on a Ray cluster. Their number never shows in the output."""

import logging
import os

from openafm.files import cores

_cluster: list[str] = []


def use_cluster(address: str) -> None:
    """Let this process's data steps run on a Ray cluster: "local" starts one here, else its address, as `auto`.

    Every machine of it has openafm installed and sees the run's folder under the same path. To be called before the
    first step. Raises ValueError when there is no such cluster, ImportError without the extra `cluster`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    import ray

    from openafm.data.frames import daft

    if _cluster:
        return
    try:
        here = {"num_cpus": workers(), "include_dashboard": False} if address == "local" else {"address": address}
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **here)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"no Ray cluster at {address!r} ({error}): start one (`ray start --head`), or say local"
        ) from error
    daft.set_runner_ray(noop_if_initialized=True)
    _cluster.append(address)


def on_cluster() -> bool:
    """Whether the data steps run on a cluster."""
    return bool(_cluster)


def workers() -> int:
    """Return one process for each core that this process may use, or that the cluster has."""
    if _cluster:
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))
    return cores()


def died(error: BaseException) -> bool:
    """Whether a process of the cluster died, rather than that its work failed."""
    if not _cluster:
        return False
    from ray import exceptions

    return isinstance(error, exceptions.RayActorError | exceptions.WorkerCrashedError | exceptions.ObjectLostError)
