"""Cells on a Ray cluster: an actor holds the process of each, so that it can be told to end."""

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from llmtrain.config import config
from llmtrain.errors import EXIT_CODES, ConfigError
from llmtrain.sweep import pool
from llmtrain.sweep.pool import Job, Launch, Watched


@config
class Ray(Launch):
    """Nodes of a cluster that see the folders of runs and of data under the same names."""

    address: str | None = None  # of the cluster, as in auto or ray://HOST:10001; none: one on this machine
    workers: PositiveInt | None = None  # at a time; none: as many as the cluster has CPUs for
    gpus: NonNegativeFloat = 0.0  # of each, parts of one too
    memory: PositiveFloat | None = None  # GB of each; none: not asked for

    def pool(self, folder: Path) -> "RayPool":
        try:
            import ray  # noqa: F401
        except ModuleNotFoundError:
            raise ConfigError(
                "sweep.launch=ray needs ray, which is not installed: pip install 'llmtrain[ray]', or take "
                "sweep.launch=local"
            ) from None
        return RayPool(self)


class RayPool(Watched[Any]):
    def __init__(self, cfg: Ray):
        super().__init__()
        self.cfg = cfg
        ray = _connected(cfg.address)
        has: dict[str, float] = ray.cluster_resources()
        wants = {"CPU": float(cfg.threads), "GPU": cfg.gpus, "memory": (cfg.memory or 0.0) * 1e9}
        for name, amount in wants.items():
            if amount > has.get(name, 0.0):
                raise ConfigError(
                    f"sweep.launch=ray: a cell wants {amount:g} {name}, and the cluster has {has.get(name, 0.0):g}: "
                    "lower sweep.launch.threads, gpus or memory"
                )
        self.workers = cfg.workers or max(1, int(has["CPU"] // cfg.threads))
        self._actor = ray.remote(Cell).options(
            num_cpus=cfg.threads,
            num_gpus=cfg.gpus,
            memory=round(wants["memory"]) or None,
            max_concurrency=2,  # else it would hear of its end when it has ended
        )

    def start(self, job: Job) -> Any:
        actor = self._actor.remote()
        return actor, actor.run.remote(tuple(job.words), str(job.log.resolve()), self.cfg.threads)

    def code(self, job: Job, held: Any) -> int | None:
        import ray

        actor, result = held
        if not ray.wait([result], timeout=0)[0]:
            return None
        try:
            return int(ray.get(result))
        except ray.exceptions.RayError as error:  # its node, or its process, is gone
            said = " ".join(str(error).split())[:200]
            with job.log.open("a", encoding="utf-8") as log:
                log.write(f"error: ray lost it: {said}\n")
            return -signal.SIGKILL
        finally:
            ray.kill(actor)

    def stop(self, held: Any) -> None:
        held[0].stop.remote()

    def kill(self, held: Any) -> None:
        import ray

        ray.kill(held[0])
        ray.wait([held[1]], timeout=pool.GRACE)


class Cell:
    """On a node, the process of a cell. Ray kills both when the sweep is gone: what was saved by then is kept."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._one = threading.Lock()

    def run(self, words: Sequence[str], log: str, threads: int) -> int:
        with self._one:
            if self._stopped:
                return EXIT_CODES[signal.SIGTERM]
            self._process = pool.process(words, Path(log), threads)
        return self._process.wait()

    def stop(self) -> None:
        with self._one:
            self._stopped = True
            if self._process is not None:
                self._process.terminate()


def _connected(address: str | None) -> Any:
    """Ray, with this process in its cluster; the signals stay the command's."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if not ray.is_initialized():
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address or "local", log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"sweep.launch.address={address}: there is no Ray cluster ({' '.join(str(error).split())[:160]})"
            ) from None
        signal.signal(signal.SIGTERM, before)
    return ray
