"""What the server keeps beside its models: stored prompts, the request log, the audit log."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from meditron.core.console import info
from meditron.core.errors import UsageError
from meditron.serve.audit import AuditLog, EventFields, request_event
from meditron.serve.background import BackgroundWriter
from meditron.serve.request_log import RequestLog, open_log_file
from meditron.serve.state import Exchange, ServeState
from meditron.store.database import Database
from meditron.store.prompts import PromptStore

__all__ = ["Records", "open_records", "records_of"]

_Event = tuple[str, EventFields]


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The open logs of a running server, and its prompts."""

    prompts: PromptStore
    log: RequestLog
    reader: Database
    """The request log, for queries that wait for no writer."""
    audit: AuditLog
    audit_writer: BackgroundWriter[_Event]

    def audit_request(self, exchange: Exchange) -> None:
        """Put a request into the audit log, without its texts; an observer of exchanges."""
        self.audit_writer.put(("request", request_event(exchange)))

    def audit_event(self, event: str, **fields: str | float | bool | None) -> None:
        """Put another event into the audit log; returns at once."""
        self.audit_writer.put((event, fields))


@contextmanager
def open_records(state: ServeState) -> Iterator[Records]:
    """Open the logs of a server, record its requests until the end of the block, and close them.

    The hash at the end of the audit log is printed at the beginning and at the end.

    Raises:
        InputError: a file is damaged, or of a newer version of the program.
        StorageError: a file cannot be written.
    """
    config = state.config
    audit = AuditLog(state.data)
    with ExitStack() as stack:
        head = audit.record("start", address=f"{config.host}:{config.port}")
        info(f"audit log: line {head.number}, {head.sha256}")
        writer = BackgroundWriter[_Event]("audit log", audit.record_all)
        stack.callback(_end_audit, audit, writer)
        log = RequestLog(
            state.data,
            content=config.log_content,
            retention_days=config.retention_days,
            deleted=lambda count: writer.put(("deletion", {"rows": count})),
        )
        stack.callback(log.close)
        records = Records(
            prompts=PromptStore(config.prompts or state.data / "prompts"),
            log=log,
            reader=stack.enter_context(open_log_file(state.data)),
            audit=audit,
            audit_writer=writer,
        )
        records.audit_event("setting", setting="log_content", value=config.log_content)
        observers: list[Callable[[Exchange], None]] = [log, records.audit_request]
        if config.otlp is not None:
            # The libraries are imported only for a server that uses them.
            from meditron.serve.otlp import SpanExport

            spans = SpanExport(config.otlp, content=config.log_content)
            stack.callback(spans.close)
            observers.append(spans)
        state.records = records
        state.observers += observers
        try:
            yield records
        finally:
            for observer in observers:
                state.observers.remove(observer)
            state.records = None


def records_of(state: ServeState) -> Records:
    """Return the open logs and prompts of a server; UsageError if it keeps none."""
    if state.records is None:
        raise UsageError("this server keeps no prompts and no logs")
    return state.records


def _end_audit(audit: AuditLog, writer: BackgroundWriter[_Event]) -> None:
    writer.close()
    head = audit.record("stop", lost=writer.lost or None)
    info(f"audit log: line {head.number}, {head.sha256}")
