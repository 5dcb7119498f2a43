"""The HTTP application of an engine; needs the extra ``serve``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, FastAPI, Header
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ...errors import HFAdaptError, did_you_mean
from ...errors.version import __version__
from ..predict import Prediction, takes_pairs, to_dict
from .admin import Admin
from .batcher import Batcher
from .body import LimitedBody
from .limits import Limits
from .messages import AddTask, Answers, Health, Predict, PredictAll, Problem, ReplaceTask, TaskOf, Tasks
from .metrics import Measured, Metrics
from .refusals import BadRequest, NotAllowed, NotFound, as_json, headers_of, status_of
from .watch import FolderWatch

if TYPE_CHECKING:
    from ..engine import Engine

__all__ = ["make_app"]

_PAGE = Path(__file__).with_name("page.html")
# The page runs its own script and asks nobody but its own server.
_POLICY = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
_MANY = "one task for each text"
Authorization = Annotated[str | None, Header()]


def make_app(engine: Engine, limits: Limits | None = None, admin: Admin | None = None) -> FastAPI:
    """Put an engine behind HTTP. The application starts and stops what runs beside it in its lifespan.

    Args:
        engine: That answers.
        limits: On what it takes.
        admin: Who may change its tasks; by default nobody.
    """
    serving = _Serving(engine, limits or Limits(), admin)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(serving.close)

    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem} for status in (401, 403, 404, 408, 409, 413, 422, 429, 500, 503)
    }
    app = FastAPI(title="hfadapt", version=__version__, lifespan=lifespan, responses=responses)
    app.include_router(serving.router())
    for kind in (Exception, HFAdaptError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _refuse_request)
    app.add_middleware(LimitedBody, limits=serving.limits, refuse=_refuse)
    app.add_middleware(Measured, metrics=serving.metrics)
    return app


class _Serving:
    """What the routes of one application share."""

    def __init__(self, engine: Engine, limits: Limits, admin: Admin | None) -> None:
        self.engine = engine
        self.limits = limits
        self.admin = admin
        self.watch = FolderWatch(engine, limits.watch_seconds)
        self.batcher = Batcher(engine, limits, lambda texts, seconds: self.metrics.batch(texts, seconds))
        self.metrics = Metrics(lambda: self.batcher.waiting, lambda: len(engine.tasks), lambda: len(self.watch.changed))

    def close(self) -> None:
        """Answer what waits, and stop."""
        self.batcher.close(self.limits.shutdown_seconds)
        self.watch.close()

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter()
        router.get("/", response_class=HTMLResponse, summary="A page to try tasks by hand")(self.page)
        router.post("/predict", response_model=Answers, summary="Answer texts of any tasks")(self.predict)
        router.post("/predict_all", response_model=Answers, summary="Answer one text by several tasks")(
            self.predict_all
        )
        router.get("/tasks", response_model=Tasks, summary="List the tasks")(self.tasks)
        router.post("/tasks", response_model=Tasks, summary="Add the tasks of a folder")(self.add)
        router.put("/tasks/{task}", response_model=Tasks, summary="Serve a task from another folder")(self.replace)
        router.delete("/tasks/{task}", response_model=Tasks, summary="Remove a task")(self.remove)
        router.get("/health", response_model=Health, summary="Whether requests are answered")(self.health)
        router.get("/metrics", summary="Figures for Prometheus")(self.figures)
        return router

    async def page(self) -> Response:
        """The page is one file, and fetches nothing from elsewhere."""
        return HTMLResponse(_PAGE.read_text("utf-8"), headers={"Content-Security-Policy": _POLICY})

    async def predict(self, asked: Predict) -> Response:
        """Texts share batches with those of other requests, and no answer depends on it."""
        count = len(asked.texts)
        tasks = [asked.tasks] * count if isinstance(asked.tasks, str) else asked.tasks
        pairs = asked.pairs if asked.pairs is not None else [None] * count
        if len(tasks) != count or len(pairs) != count:
            got = f"{count} texts, {len(tasks)} tasks, {len(pairs)} pairs"
            raise BadRequest("lists of different lengths", where="body", got=got, allowed=_MANY, try_='"tasks": "NAME"')
        return await self._answered(asked.texts, tasks, pairs)

    async def predict_all(self, asked: PredictAll) -> Response:
        """Where no tasks are named, those that read one text answer it; or those that read two, with a pair."""
        tasks = asked.tasks
        if tasks is None:
            tasks = [task.name for task in self.engine.tasks if takes_pairs(task) == (asked.pair is not None)]
        if not tasks:
            got = "one text" if asked.pair is None else "two texts"
            raise BadRequest("no task reads that many texts", where="pair", got=got, try_='"tasks": ["NAME"]')
        return await self._answered([asked.text] * len(tasks), tasks, [asked.pair] * len(tasks))

    async def _answered(self, texts: list[str], tasks: list[str], pairs: Any) -> Response:
        self.watch.check(tasks)
        found = await asyncio.wrap_future(self.batcher.submit(texts, tasks, pairs))
        self.metrics.answered(tasks)
        return _Json({"answers": [_without_texts(one) for one in found]})

    async def tasks(self) -> Response:
        """Under the names by which `predict` knows them."""
        return self._listed()

    def _listed(self, status: int = 200) -> Response:
        changed = self.watch.changed
        found = [
            TaskOf(
                name=task.name,
                kind=task.head.kind,
                pair=takes_pairs(task),
                labels=None if task.label_names is None else list(task.label_names),
                changed=task.name in changed,
            )
            for task in self.engine.tasks
        ]
        return _Json({"tasks": [one.model_dump(exclude_none=True) for one in found]}, status)

    async def add(self, asked: AddTask, authorization: Authorization = None) -> Response:
        """Others are served meanwhile. Where the folder cannot be served, nothing has changed."""
        folder = self._allowed(authorization).folder(asked.folder)
        await run_in_threadpool(self.engine.add, folder, asked.name, called=asked.called)
        return self._listed(201)

    async def replace(self, task: str, asked: ReplaceTask, authorization: Authorization = None) -> Response:
        """From one batch to the next. Where the folder cannot be served, the task is served as before."""
        folder = self._allowed(authorization).folder(asked.folder)
        self._known(task)
        await run_in_threadpool(self.engine.replace, task, folder, asked.name)
        await run_in_threadpool(self.watch.look)
        return self._listed()

    async def remove(self, task: str, authorization: Authorization = None) -> Response:
        """Texts that wait for it get the error of an unknown task."""
        self._allowed(authorization)
        self._known(task)
        await run_in_threadpool(self.engine.remove, task)
        await run_in_threadpool(self.watch.look)
        self.metrics.forget(task)
        return self._listed()

    def _allowed(self, header: str | None) -> Admin:
        if self.admin is None:
            raise NotAllowed(
                "tasks cannot be changed here", where="/tasks", try_="hfadapt serve --root FOLDER --token-file FILE"
            )
        self.admin.check(header)
        return self.admin

    def _known(self, task: str) -> None:
        names = [one.name for one in self.engine.tasks]
        if task not in names:
            near = did_you_mean(task, names) or "GET /tasks"
            raise NotFound("no such task", where="path", got=repr(task)[:200], allowed=", ".join(names), try_=near)

    async def health(self) -> Response:
        """Status 503 once the server is about to stop."""
        closing = self.batcher.closing
        found = Health(
            status="closing" if closing else "ok",
            tasks=len(self.engine.tasks),
            waiting=self.batcher.waiting,
            changed=sorted(self.watch.changed),
        )
        return _Json(found.model_dump(), 503 if closing else 200)

    async def figures(self) -> Response:
        """In Prometheus's text format."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class _Json(JSONResponse):
    """JSON in ASCII: an error may quote half a character, which UTF-8 cannot hold."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def _without_texts(answer: Prediction) -> dict[str, Any]:
    return {key: value for key, value in to_dict(answer).items() if key not in ("text", "text_pair")}


def _refuse(error: Exception) -> Response:
    """Return an error as the answer to a request."""
    return _Json(as_json(error), status_of(error), headers_of(error))


async def _refuse_request(request: Any, error: Exception) -> Response:
    """Return what FastAPI or the engine raised as an error of ours."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
        problem = BadRequest(
            f"not what the server reads{more}",
            where=where,
            got=repr(first.get("input"))[:80],
            allowed=first["msg"],
            try_="GET /openapi.json shows what it reads",
        )
        return _refuse(problem)
    if isinstance(error, HTTPException):
        got = f"{request.method} {request.url.path}"[:200]
        kind = NotFound if error.status_code == 404 else BadRequest
        made = kind(str(error.detail), where="request", got=got, allowed="see /openapi.json", try_="GET / for a page")
        return _Json(as_json(made), error.status_code, dict(error.headers or {}))
    return _refuse(error)
