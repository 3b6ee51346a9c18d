"""What all requests share: settings, the model in force and how another takes its place, the ledger, the drain.

    runtime = Runtime(settings)
    runtime.start()                 # raises before anything is served
    model = runtime.in_force()      # a request takes it once and keeps it to its end
    await runtime.stop()

No HTTP: API keys and the memory for bodies belong to service/web.
"""

import asyncio
import time
from dataclasses import dataclass, field

import structlog

from service.contract.bundle import OUTLIER_LABEL
from service.contract.decision import Scope
from service.deploy import loading
from service.deploy.deployments import Action, Deployment, Deployments, Served
from service.errors import InvalidParameter, NotReady, TailGuardError
from service.inference.model import Deciding, Model
from service.inference.providers import PROVIDERS
from service.inference.shadow import Shadow
from service.ledger import database, schema
from service.ledger.rows import FeedbackRecord, key_of
from service.ledger.writer import OFF, Ledger
from service.observe import tracing
from service.observe.metrics import Metrics
from service.observe.tracing import Tracer
from service.settings import PREFIX, Settings
from service.settings.places import Source

log = structlog.get_logger()


@dataclass
class Runtime:
    """One per application. `model` is None until it is loaded and verified."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    model: Model | None = None
    shadow: Shadow | None = None
    ledger: Ledger | None = None
    draining: bool = False
    in_flight: int = 0  # requests
    failure: Exception | None = None  # why the start failed

    def __post_init__(self) -> None:
        settings = self.settings
        self.tracer: Tracer | None = tracing.load(settings)
        self.deciding = Deciding(settings.operating_point, settings.threshold_scope, f"{PREFIX}OPERATING_POINT")
        self.metrics.provider_asked.labels(PROVIDERS[settings.provider].name).set(1)
        self.deployments = Deployments(settings.ledger, settings.bundle)
        self._deployed_row = 0  # the last deployment that was put in force here
        self._swapping = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    # Start and readiness ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load what the settings name. Raises BundleError, EngineError or SettingsError, each with one clear line."""
        settings = self.settings
        if settings.ledger != OFF:
            database.check(settings.ledger)  # before the deployments in it are read
            schema.require_ours(settings.ledger)
        started = loading.at_start(self.deployments, settings, self.metrics, self.deciding)
        self.model, self.deciding, self._deployed_row = started
        self.metrics.bind(self.model.metrics)
        if settings.shadow_bundle is not None:
            self.shadow = self.load_shadow(settings.shadow_bundle)
        self.ledger = Ledger.open(settings, self.metrics, self._count_feedback)
        log.info("model ready", **self.model.described())

    def in_force(self) -> Model:
        """The model that decides from now on. Raises NotReady before the first one is loaded."""
        if self.model is None:
            raise NotReady("the service is starting: ask again in a second")
        return self.model

    def check_ready(self) -> None:
        """Raises NotReady unless new requests should be sent here."""
        if self.draining:
            raise NotReady("the service is draining: send requests to another replica")
        if (fault := self.in_force().pipeline.fault()) is not None:
            raise NotReady(f"{fault}: send requests to another replica")

    def check_live(self) -> None:
        """Raises NotReady when the engine has been faulty for so long that the process should be started anew."""
        if self.model is not None and self.model.pipeline.dead():
            raise NotReady("the engine does not recover: start the service anew, and read its log")

    # Changes while it runs --------------------------------------------------------------------------------------------

    async def swap(
        self,
        what: Source | Served,
        operating_point: str | None,
        scope: Scope | None,
        *,
        action: Action = "swap",
        key: str | None = None,
    ) -> tuple[Model, float]:
        """Put the bundle `what` in force and retire the one before; the new model and the seconds it took.

        It is loaded, verified and warmed up beside the running one, which answers meanwhile, and written down for the
        next start and the other replicas. Without an operating point or scope those of the deployment stay, or else
        the new bundle's own hold. Raises BundleError, EngineError, SettingsError or NotReady: nothing has changed then.
        """
        async with self._swapping:
            started = time.perf_counter()
            loaded = await self._load(what, operating_point, scope)
            asked = {"operating_point": operating_point, "scope": scope, "replaced": key_of(self.in_force().manifest)}
            try:
                made = (action, loaded.source, loaded.manifest, key, asked)
                written = await asyncio.to_thread(self.deployments.append, *made)
            except Exception as error:  # each driver has its own
                loaded.close()
                log.error("the deployment was not written down", error=str(error))
                raise NotReady("the ledger cannot be written now, so nothing was swapped: try again") from error
            self._take_over(loaded, written, operating_point, scope)
            return self.in_force(), time.perf_counter() - started

    async def follow(self, deployment: Deployment) -> None:
        """Put in force what was deployed elsewhere. Raises as `swap`, and then the bundle in force stays."""
        async with self._swapping:
            if deployment.row <= self._deployed_row:
                return
            asked = deployment.decides_by
            self._take_over(await self._load(deployment, *asked), deployment, *asked)

    @property
    def deployed_row(self) -> int:
        """The last deployment that was put in force here, 0 for none."""
        return self._deployed_row

    def load_shadow(self, source: Source, share: float | None = None) -> Shadow:
        """Another bundle, for `share` of the images. Raises BundleError, EngineError or SettingsError."""
        loaded = loading.load(source, self.settings, self.metrics, self.deciding, shadow=True)
        return Shadow(loaded, self.settings, self.metrics, share)

    def set_shadow(self, shadow: Shadow | None) -> None:
        """Compare with another shadow from now on, or with none."""
        if self.shadow is not None:
            self.shadow.close()
        self.shadow = shadow

    async def _load(
        self, what: Source | Deployment | Served, operating_point: str | None, scope: Scope | None
    ) -> Model:
        """A bundle beside the one in force. Raises NotReady while the service ends."""
        deciding = self.deciding.changed(operating_point, scope)
        loaded = await asyncio.to_thread(loading.load, what, self.settings, self.metrics, deciding)
        try:
            if self.draining:
                raise NotReady("the service is shutting down: nothing was swapped")
            # What decides may have been changed while the bundle was loaded.
            deciding = self.deciding.changed(operating_point, scope)
            return loaded.deciding_by(*deciding.within(loaded.folder, loaded.manifest))
        except TailGuardError:
            loaded.close()
            raise

    def _take_over(
        self, loaded: Model, deployment: Deployment, operating_point: str | None, scope: Scope | None
    ) -> None:
        old = self.in_force()
        self._decide_by(self.deciding.changed(operating_point, scope))
        self.model = loaded  # the requests that hold the old one keep it to their end
        self._deployed_row = deployment.row
        self.metrics.bind(loaded.metrics)
        self.metrics.deployment_failed.set(0)
        if self.shadow is not None and self.shadow.model.source == loaded.source:
            self.set_shadow(None)  # there is nothing to compare any more
        log.info("model swapped", action=deployment.action, before=old.described()["bundle"], **loaded.described())
        task = asyncio.create_task(self._retire(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def set_operating_point(self, operating_point: str | None, scope: Scope | None) -> Model:
        """Decide by another operating point or scope from the next request on. Raises InvalidParameter."""
        current = self.in_force()
        known = current.manifest.operating_points
        if operating_point is not None and operating_point not in known:
            raise InvalidParameter(
                f"operating_point={operating_point[:100]} is none of this model's: {', '.join(known)}"
            )
        self._decide_by(self.deciding.changed(operating_point, scope))
        self.model = current.deciding_by(operating_point, scope)
        log.info("operating point set", **self.model.described())
        return self.model

    def _decide_by(self, deciding: Deciding) -> None:
        """Take over what the deployment has chosen, for the shadow too."""
        self.deciding = deciding
        if self.shadow is not None:
            self.shadow.follow(deciding)

    # Metrics ----------------------------------------------------------------------------------------------------------

    async def render_metrics(self) -> bytes:
        """The text for Prometheus, with the gauges that are read only when somebody asks."""
        metrics = self.metrics
        metrics.requests_in_flight.set(self.in_flight)
        metrics.ready.set(0)
        if self.model is not None:
            metrics.queue_images.set(self.model.pipeline.held)
            metrics.queue_limit_images.set(self.model.pipeline.queue_images)
            metrics.engine_usable.set(self.model.pipeline.fault() is None)
            metrics.ready.set(not self.draining and self.model.pipeline.fault() is None)
            if self.ledger is not None:
                audit = self.ledger.audit(self.model.manifest, self.model.operating_point, self.model.scope)
                self.model.metrics.stream.set_audit(audit.labelled, audit.shares())
            await asyncio.to_thread(self.model.metrics.stream.estimate)
        return await asyncio.to_thread(metrics.render)  # with thousands of series it takes a tenth of a second and more

    def _count_feedback(self, record: FeedbackRecord, change: int) -> None:
        """Count feedback, in the ledger's thread; that about a model no longer in force is in the ledger only."""
        current = self.model  # read once: the event loop may put another in its place
        if current is not None and record.outcome is not None and key_of(current.manifest) == record.model:
            at = {info.name: i for i, info in enumerate(current.manifest.classes)} | {OUTLIER_LABEL: None}
            decided, ours = (record.decision, record.operating_point, record.scope), record.by_deployment
            if record.truth in at:  # else of a bundle whose classes were renamed under the same version
                current.metrics.count_feedback(at[record.truth], record.outcome, decided, change, by_deployment=ours)

    # The end ----------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Answer what is in the pipeline, then close everything."""
        self.draining = True
        if self.model is not None:
            if not await self.model.pipeline.drain(self.settings.drain_s):
                log.warning("images were still in work at the end of the drain", images=self.model.pipeline.held)
            self.model.close()
        if self.shadow is not None:
            self.shadow.close()
        if self.ledger is not None:
            await asyncio.to_thread(self.ledger.close)
        for task in list(self._retiring):
            task.cancel()
        await asyncio.to_thread(self.deployments.close)
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    async def _retire(self, old: Model) -> None:
        # No new request can take the old model; those that have it are bounded by their deadline.
        await old.pipeline.drain(self.settings.request_timeout_s + 1)
        old.pipeline.close()
        await asyncio.to_thread(old.engine.close)
