"""How train.py joins the other processes of its run, and leaves them."""

import faulthandler
import ipaddress
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
from absl import flags
from jax._src import xla_bridge
from jax._src.distributed import global_state
from jax._src.lib import _jax

from longformer_jax.command_line import fail, one_line_for_errors
from longformer_jax.errors import InputError
from longformer_jax.processes import Agreed, check_same, judged
from longformer_jax.training import DivergenceError

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Trains together with other processes that run the same command: those of a cluster (Slurm, MPI, Kubernetes, TPU), "
    "or those that the next three flags describe.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, as all reach it; else $JAX_COORDINATOR_ADDRESS."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are; else $JAX_NUM_PROCESSES.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on; else $JAX_PROCESS_ID.")
_JOIN_TIMEOUT = flags.DEFINE_integer("join_timeout", 300, "Seconds to wait until all processes are there.")

# Seconds without a sign of life after which a process counts as dead, and for which those that end wait for the others.
_HEARTBEAT_TIMEOUT = 20
_SHUTDOWN_TIMEOUT = 10
# What is said by a collective, or by JAX's service, when a process no longer takes part.
_BROKEN = re.compile(r"Gloo|NCCL|UNAVAILABLE|[Cc]oordination")


@contextmanager
def member() -> Iterator[None]:
    """Makes this process one of several, if the flags say so, for a block, and ends it as one of them.

    Where all end they wait for each other, and process 0 speaks for all. A process that ends alone does so at once, and
    JAX's service, which misses it, ends the others.

    Raises:
      InputError: the processes cannot be joined.
    """
    if not _DISTRIBUTED.value:
        for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID):
            if flag.value is not None:
                raise InputError(f"--{flag.name} is {flag.value}; expected --distributed beside it")
        yield
        return
    _join()
    try:
        check_same({"num_processes": global_state.num_processes})
        _let_cpus_find_each_other()
        yield
    except (Agreed, DivergenceError) as error:
        jax.distributed.shutdown()
        if global_state.process_id:
            sys.exit(2 if isinstance(error, InputError) else 1)
        raise
    except BaseException as error:
        _end_at_once(error)
    jax.distributed.shutdown()


def _join() -> None:
    """Joins the processes that the flags describe; raises InputError where that cannot be."""
    faulthandler.enable(2)  # with what C++ prints, not with what Python does
    seconds = _JOIN_TIMEOUT.value or 0
    if seconds < 1:
        raise InputError(f"--join_timeout is {seconds}; expected at least 1")
    address, count, process = _described()
    if address is not None and count is not None and process is not None:
        _check_coordinator(address, process, seconds)
    who = "all processes of the cluster" if count is None else f"one for each --process_id from 0 to {count - 1}"
    with _at_most(seconds, f"not all processes have joined within {seconds} s; expected {who}"):
        try:
            jax.distributed.initialize(
                address,
                count,
                process,
                cluster_detection_method=None if None in (address, count, process) else "deactivate",
                initialization_timeout=seconds + 60,
                heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
                shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
            )
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"--distributed finds no cluster ({reason}); expected a process that one has started, or all of "
                "--coordinator=HOST:PORT, --num_processes=N and --process_id=I"
            ) from None


def _described() -> tuple[str | None, int | None, int | None]:
    """The coordinator's address, the number of processes and which this one is, as far as they are told."""
    address = _COORDINATOR.value or os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    if address is not None:
        _host_and_port(address)
    count, process = _number(_NUM_PROCESSES, "JAX_NUM_PROCESSES"), _number(_PROCESS_ID, "JAX_PROCESS_ID")
    if count is not None and count < 1:
        raise InputError(f"--num_processes is {count}; expected at least 1")
    if process is not None and (process < 0 or count is not None and process >= count):
        raise InputError(f"--process_id is {process}; expected 0 to {'N - 1' if count is None else count - 1}")
    return address, count, process


def _number(flag: flags.FlagHolder[int | None], variable: str) -> int | None:
    """The value of a flag, or of the variable of the environment that can take its place."""
    text = os.environ.get(variable)
    if flag.value is not None or not text:
        return flag.value
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{variable} is {text!r}; expected an integer") from None


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator is {address!r}; expected HOST:PORT, such as 10.0.0.1:1234")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _check_coordinator(address: str, process: int, seconds: float) -> None:
    """Raises InputError where process 0 cannot listen, or does not do so in time; JAX would crash in either case."""
    host, port = _host_and_port(address)
    if process == 0:
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise InputError(
                f"--coordinator is {address!r}, where process 0 cannot listen ({reason}); expected a free port"
            ) from None
        return
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise InputError(
                    f"--coordinator is {address!r}, where nobody answers within {seconds} s "
                    f"({error.strerror or error}); expected process 0 to run there"
                ) from None
        time.sleep(0.5)


@contextmanager
def _at_most(seconds: float, sentence: str) -> Iterator[None]:
    """Ends the process with a sentence when the block takes longer, which JAX would do by an abort."""

    def give_up() -> None:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _let_cpus_find_each_other() -> None:
    """Gives the collectives of CPUs the address that leads to the coordinator.

    By themselves they take that of the machine's name, which in many a machine is one that leads nowhere else, such as
    127.0.1.1. Other devices have collectives that find a way.
    """
    if jax.config.jax_cpu_collectives_implementation != "gloo":
        return
    place = _host_and_port(global_state.coordinator_address or "")
    family = socket.getaddrinfo(*place, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing
        own, there = probe.getsockname()[0], probe.getpeername()[0]
    # Process 0 may know its own name by such an address, and the others know better.
    seen = judged(there, lambda seen: next((a for a in seen if not ipaddress.ip_address(a).is_loopback), seen[0]))
    address = seen if global_state.process_id == 0 else own

    def make_client() -> object:
        collectives = _jax.make_gloo_tcp_collectives(global_state.client, hostname=address)
        return xla_bridge.make_cpu_client(collectives)

    xla_bridge.register_backend_factory("cpu", make_client, priority=0, fail_quietly=False)


def _end_at_once(error: BaseException) -> NoReturn:
    """Says what is wrong, as a single process would, and ends."""
    status: Any = 1
    try:
        with one_line_for_errors():
            alone = isinstance(error, TimeoutError) and error.errno is None  # as Orbax says it
            if alone or _BROKEN.search(str(error)) and not isinstance(error, InputError | OSError):
                time.sleep(
                    1.5 * _HEARTBEAT_TIMEOUT
                )  # within that, the service ends this process, too, and says for whom
                fail(1, f"the processes of the run do not reach each other ({str(error).splitlines()[0][:300]})")
            raise error
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
