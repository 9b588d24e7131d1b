"""The agent as a process: configuration, logging, both servers, signals."""

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Final

import structlog

from vmreplica.agent.agent import Agent
from vmreplica.agent.config import Config, LogSection, load_config
from vmreplica.api.heap import bound_heap, tend_heap
from vmreplica.api.server import start_api
from vmreplica.peer.server import make_app, start_server
from vmreplica.peer.wire import split_address

_log: Final = structlog.get_logger(__name__)


def run(path: Path) -> None:
    """Run an agent until SIGTERM or SIGINT.

    Raises:
        VmReplicaError: the configuration is wrong, a directory or a socket cannot be used.
    """
    bound_heap()
    config = load_config(path)
    _configure_logging(config.log)
    agent = Agent(config)
    asyncio.run(_serve(agent, config))


async def _serve(agent: Agent, config: Config) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, ending.set)
    api = await start_api(agent, config.agent.socket)
    try:
        await asyncio.to_thread(agent.start)
        try:
            await _serve_peers(agent, config, ending)
        finally:
            # Also when it cannot listen: what it began ends in an orderly way.
            await asyncio.to_thread(agent.stop)
    finally:
        await api.stop()


async def _serve_peers(agent: Agent, config: Config, ending: asyncio.Event) -> None:
    host, port = split_address(config.agent.listen)
    app = make_app(
        agent.identity,
        agent.book,
        agent.invitations,
        config.agent.addresses(),
        agent.receiver,
        planned=agent.planned,
        proving=agent.proving,
    )
    peers = await start_server(app, agent.identity, host, port)
    _log.info("agent runs", host=agent.identity.name, host_id=agent.identity.host_id, listen=config.agent.listen)
    heap = asyncio.create_task(tend_heap())
    try:
        await ending.wait()
    finally:
        heap.cancel()
        _log.info("agent ends")
        await peers.stop()


def _configure_logging(section: LogSection) -> None:
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if section.format == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[section.level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
