"""An event loop in a thread of its own, so that plain code, notebooks and other loops share one set of connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Background"]

T = TypeVar("T")

_PATIENCE = 5.0  # seconds in which connections should be closed


class Background:
    """Runs coroutines from any thread, all in one loop.

    Parameters
    ----------
    closing
        Called in the loop, last of all.
    """

    def __init__(self, closing: Callable[[], Awaitable[None]]) -> None:
        self._closing = closing
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="reperio-remote", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin to run; cancelling the future cancels the work."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """Have what is under way cancelled, and the thread end; waits for nothing, as a finaliser must not."""
        if os.getpid() == self._process:  # a child has no such thread
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._loop.stop)

    def close(self) -> None:
        """Stop, and wait until the connections are closed."""
        self.stop()
        if os.getpid() == self._process:
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._end())
        finally:
            self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._closing()
                await self._loop.shutdown_asyncgens()
                await self._loop.shutdown_default_executor()  # names are looked up there
