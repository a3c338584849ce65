"""Shards as tasks of a Ray cluster, for the executor: the one at RAY_ADDRESS, or one started here.

Results go through the store alone, so the checkout must be on storage that all nodes share, at one
path. A shard whose worker or node is lost is given to another one. A driver that is lost takes its
running tasks along, and the next one goes on from the store.
"""

import os
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import ray
import torch
from ray.exceptions import AuthenticationError, RayError, RayTaskError

from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.study.study import Study

ADDRESS_VARIABLE = "RAY_ADDRESS"
RETRIES = 3  # of a shard whose worker was lost; one that raised is not tried again
OBJECT_STORE = 80 * 2**20  # bytes, about Ray's least: results do not go through it
ENVIRONMENT = {  # of Ray in this process, where not set
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would report to its makers
    "RAY_task_oom_retries": str(RETRIES),  # else for ever, where Ray ends workers for their memory
}


class RayPool:
    """A ``Pool`` of the cluster's workers, each task with what the study says a shard takes."""

    def __init__(self, study: Study, work: Callable) -> None:
        _connect(study)
        cpus, gpus = _check_room(study)

        def in_worker(*arguments):
            if not gpus:  # Ray leaves all of them visible to such a task
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
            work(*arguments)

        # With GPUs Ray gives each task a process of its own, so that none leaves models on them.
        self._work = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(in_worker)

    def submit(self, *arguments) -> ray.ObjectRef:
        return self._work.remote(*arguments)

    def finished(self, tasks: Collection[ray.ObjectRef]) -> Collection[ray.ObjectRef]:
        done, _ = ray.wait(list(tasks), num_returns=1)
        try:
            ray.get(done)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise TokenshiftError(
                f"Ray gave up on a shard after {RETRIES} retries, most likely for lack of memory "
                f"({first_line(error)}); give the shards more room or lower the study's 'batch', "
                "and run again: finished shards are kept"
            ) from None
        return done

    def stop(self, tasks: Collection[ray.ObjectRef]) -> None:
        for task in tasks:
            ray.cancel(task, force=True)


@contextmanager
def cluster(study: Study) -> Iterator[None]:
    """A cluster for this process and those it starts: ``RAY_ADDRESS`` is set to where it is.

    Raises
    ------
    TokenshiftError
        On entering, where the cluster is not reached or has no node that a shard fits on.
    """
    connected = ray.is_initialized()
    _connect(study)
    try:
        _check_room(study)
        os.environ[ADDRESS_VARIABLE] = ray.get_runtime_context().gcs_address
        yield
    finally:
        if not connected:
            ray.shutdown()


def _connect(study: Study) -> None:
    """Connect this process, once; what Ray starts here ends with it."""
    if ray.is_initialized():
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get(ADDRESS_VARIABLE)
    settings = {"log_to_driver": False, "logging_level": "ERROR"}
    if not address:
        # Where there are GPUs they set how many shards are computed at once.
        cpus = None if torch.cuda.is_available() else max(study.workers, 1) * study.resources.cpus
        settings |= {
            "num_cpus": cpus,
            "object_store_memory": OBJECT_STORE,
            "include_dashboard": False,
        }
    try:
        host, colon, port = (address or "").rpartition(":")
        if colon and "/" not in host:  # Ray itself would try for many minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()
        ray.init(address or "local", **settings)
    except Exception as error:  # Ray raises whatever comes, also bare Exceptions
        what = f"reach the cluster at {ADDRESS_VARIABLE}={address}" if address else "start here"
        if AuthenticationError.__name__ in f"{error!r} {error.__cause__}":  # Ray passes on its text
            raise TokenshiftError(
                f"Ray cannot {what}, which takes a token: set RAY_AUTH_MODE=token where its token is "
                "in ~/.ray/auth_token or RAY_AUTH_TOKEN"
            ) from error
        raise TokenshiftError(f"Ray cannot {what}: {first_line(error)}") from error


def _check_room(study: Study) -> tuple[int, float]:
    """CPUs and GPUs of a shard; refuses what Ray would wait for without end."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = study.resources.cpus, study.resources.gpus
    if gpus is None:
        gpus = _gpus_used(study) if any(node.get("GPU") for node in nodes) else 0
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        raise TokenshiftError(
            f"a shard of study {study.name} takes {cpus} CPUs and {gpus:g} GPUs, which no node of "
            "the Ray cluster has; change the study's 'resources', or add such a node first"
        )
    return cpus, gpus


def _gpus_used(study: Study) -> int:
    """GPUs that a process uses: all that its engines are spread over, else one."""
    if study.device_map is not None:
        raise TokenshiftError(
            f"study {study.name} spreads its models by 'device_map': say in 'resources.gpus' over "
            "how many GPUs, so that Ray gives a shard as many"
        )
    if study.engines is None:
        return 1
    engines = [study.engines.of(model) for model in study.models]
    return max(1 + max(e.devices) if e.devices else e.tensor_parallel_size for e in engines)
