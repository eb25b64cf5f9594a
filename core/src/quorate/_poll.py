"""Calls a hook, and finds the plugin that raised or gave a wrong answer.

What does not live here: what follows for that plugin (:mod:`quorate.plugins`, :mod:`quorate._decisions`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import FrameType
from typing import Any, final

from pluggy import HookImpl, PluggyTeardownRaisedWarning, PluginManager

from . import _core_plugin
from ._interruption import call_interruptibly
from ._isolation import raise_if_interrupted


@final
class Poll:
    """One call of a hook, to all plugins but those that were left out.

    Arguments:
        manager: has the plugins, the core's own among them.
        hook: the hook's name.
        arguments: the hook's, in their order.
        left_out: plugins that are not called.
    """

    def __init__(
        self, manager: PluginManager, hook: str, arguments: Sequence[Any], left_out: Iterable[Any] = ()
    ) -> None:
        self._manager, self.hook, self._arguments = manager, hook, arguments
        self.left_out = list(left_out)

    def ask(self, without: Sequence[Any] = ()) -> Any:
        caller = self._manager.subset_hook_caller(self.hook, [*self.left_out, *without])
        assert caller.spec is not None
        call = partial(call_interruptibly, caller, **dict(zip(caller.spec.argnames, self._arguments, strict=True)))
        if not any(each.hookwrapper for each in caller.get_hookimpls()):
            return call()
        with warnings.catch_warnings():  # the caller reports what a wrapper raises, without what steers a terminal
            warnings.simplefilter("ignore", PluggyTeardownRaisedWarning)
            return call()

    def count_answers(self) -> int:
        """Return the number of implementations that answer; wrappers do not count."""
        return sum(not _is_wrapper(each) for each in self._implementations())

    def culprit(self, error: BaseException) -> Any | None:
        """Return the plugin whose implementation raised ``error``, ``None`` if it is the core's."""
        implementations = self._implementations()
        for frame in reversed(frames_of(error)):
            running = [each for each in implementations if _is_frame_of(frame, each.function)]
            if len(running) == 1:
                return None if running[0].plugin is _core_plugin else running[0].plugin
        # A builtin has no frame, and plugins may share one function.
        return self.find(lambda answer: False)

    def wraps(self, plugin: Any) -> bool:
        """Return whether ``plugin`` wraps the answers of others.  What it raises may be the fault of one of those."""
        return any(each.plugin is plugin and _is_wrapper(each) for each in self._implementations())

    def find(self, is_wrong: Callable[[Any], bool]) -> Any | None:
        """Return the plugin that raises or whose answer ``is_wrong``, ``None`` if it is the core's or none.

        The plugins are asked one by one until one answers; then the wrappers are added one by one.
        """
        implementations = self._implementations()
        plain = [each for each in reversed(implementations) if not _is_wrapper(each)]
        wrappers = [each for each in implementations if _is_wrapper(each)]  # the innermost first
        trials = [[each] for each in plain] + [[*plain, *wrappers[: last + 1]] for last in range(len(wrappers))]
        has_answer = False
        for asked in trials:
            if has_answer and len(asked) == 1:
                continue
            try:
                answer = self.ask(_plugins_of(implementations, without=asked))
            except BaseException as error:
                raise_if_interrupted(error)
                is_guilty = True
            else:
                is_guilty = is_wrong(answer)
                has_answer = has_answer or answer is not None
            if is_guilty:
                return None if asked[-1].plugin is _core_plugin else asked[-1].plugin
        return None

    def _implementations(self) -> list[HookImpl]:
        """Return the implementations that are asked, in the reverse order of the calls."""
        found = getattr(self._manager.hook, self.hook).get_hookimpls()
        return [each for each in found if not any(each.plugin is plugin for plugin in self.left_out)]


def _plugins_of(implementations: Iterable[HookImpl], without: Sequence[HookImpl]) -> list[Any]:
    """Return the plugins of the implementations; a plugin of one in ``without`` is not among them."""
    return [each.plugin for each in implementations if not any(each.plugin is other.plugin for other in without)]


def frames_of(error: BaseException) -> list[FrameType]:
    """Return the frames that an exception has passed through; the last one has raised it."""
    frames: list[FrameType] = []
    traceback = BaseException.__dict__["__traceback__"].__get__(error)  # a plugin's class may have one of its own
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return frames


def _is_wrapper(implementation: HookImpl) -> bool:
    return bool(implementation.wrapper or implementation.hookwrapper)


def _is_frame_of(frame: FrameType, function: Any) -> bool:
    """Return whether ``frame`` runs ``function``; methods of two plugins may have the same code."""
    while isinstance(function, partial):
        function = function.func
    if getattr(function, "__code__", None) is not frame.f_code:
        return False
    owner = getattr(function, "__self__", None)
    return owner is None or frame.f_locals.get(frame.f_code.co_varnames[0]) is owner
