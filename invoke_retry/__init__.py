"""Invoke a service; if it fails, again: while you wait, or in the background, or a bit of both."""

from invoke_retry.backends.base import Backend
from invoke_retry.coordinator import InvokeRetry
from invoke_retry.correlation import Call, CorrelationId, current_call
from invoke_retry.errors import (
    BackendError,
    BackendFull,
    CidConflict,
    DuplicateService,
    InvalidPayload,
    InvalidPolicy,
    InvalidService,
    InvalidState,
    InvocationNotFound,
    InvokeRetryError,
    NotRunning,
    NotStorable,
    RetriesExhausted,
    RetryAfter,
    ServiceNotFound,
)
from invoke_retry.models import Attempt, CallbackPayload, ErrorInfo, Invocation
from invoke_retry.policy import RetryPolicy
from invoke_retry.registry import Service, ServiceRegistry

__all__ = [
    "Attempt",
    "Backend",
    "BackendError",
    "BackendFull",
    "Call",
    "CallbackPayload",
    "CidConflict",
    "CorrelationId",
    "DuplicateService",
    "ErrorInfo",
    "InvalidPayload",
    "InvalidPolicy",
    "InvalidService",
    "InvalidState",
    "Invocation",
    "InvocationNotFound",
    "InvokeRetry",
    "InvokeRetryError",
    "NotRunning",
    "NotStorable",
    "RetriesExhausted",
    "RetryAfter",
    "RetryPolicy",
    "Service",
    "ServiceNotFound",
    "ServiceRegistry",
    "current_call",
]
