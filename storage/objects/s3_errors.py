"""What an S3-compatible store's refusals mean here: which are temporary, which are an operator's to mend.

A key is only missing when the store says ``NoSuchKey``. A bucket that is not there, keys that are not accepted and a
clock that is wrong are never "not found", and are not tried again: each gets a sentence that says what to look at.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from storage.errors import ObjectMissing, StorageError, StoreFull, StoreUnavailable

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9_.-]{1,100})</Code>")
_CERTIFICATE = re.compile(r"InvalidCertificate|certificate verify failed|invalid peer certificate", re.IGNORECASE)
_DEBUG = "\n\nDebug source"
_LONGEST_CHARS = 300
UNTRUSTED = "UntrustedCertificate"
"""Not the store's code, but ours: its certificate is not one we trust."""
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "InsufficientCapacity"}
_STALE_CREDENTIALS = {
    "ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch",
    "InvalidSecurity",
}  # fmt: skip
_TEMPORARY_CODES = {
    "SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling",
    "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded", "OperationAborted", "ServerBusy",
    "ConditionalRequestConflict", "BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "NoSuchUpload",
    "InvalidPart",
}  # fmt: skip
"""Also what was damaged or forgotten on the way: it may arrive whole the next time."""
_TEMPORARY_STATUSES = {408, 409, 425, 429, 499}
_SENTENCES = {
    "NoSuchBucket": "the bucket does not exist; make it, or correct store.url",
    "AccessDenied": "access is denied: these credentials lack a right on the bucket",
    "InvalidAccessKeyId": "the access key is not known to the store; look at the credentials",
    "SignatureDoesNotMatch": "the signature is not accepted; look at the secret key, store.region and store.endpoint",
    "ExpiredToken": "the credentials have expired",
    "TokenRefreshRequired": "the credentials have expired",
    "InvalidToken": "the session token is not accepted",
    "RequestTimeTooSkewed": "this machine's clock and the store's differ too much",
    "AuthorizationHeaderMalformed": "the store is in another region than store.region says",
    "PermanentRedirect": "the bucket is at another address; look at store.endpoint and store.region",
    "TemporaryRedirect": "the bucket is at another address; look at store.endpoint and store.region",
    UNTRUSTED: "its certificate is not trusted; look at store.ca_file",
    "AccountProblem": "the store's account has a problem",
    "MethodNotAllowed": "the server does not know this operation; is store.endpoint an S3 service?",
}
_BY_STATUS = {
    301: _SENTENCES["PermanentRedirect"],
    307: _SENTENCES["PermanentRedirect"],
    401: "the credentials are not accepted",
    403: _SENTENCES["AccessDenied"],
    404: "there is no S3 service at this address, or no such bucket; look at store.endpoint and store.url",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """How the store refused: HTTP status and error code; status 0 without any answer."""

    status: int
    code: str
    text: str
    """For people, without secrets."""

    @property
    def stale_credentials(self) -> bool:
        """Whether other credentials could help."""
        return self.code in _STALE_CREDENTIALS or self.status == 401

    @property
    def beyond_end(self) -> bool:
        """Whether a range began behind the content's end."""
        return self.status == 416


def answer_of(status: int, body: bytes) -> Answer:
    """Read a response that is no success."""
    code = code_of(body.decode("utf-8", "replace"))
    return Answer(status, code, f"HTTP {status} {code}".rstrip())


def answer_of_error(error: BaseException) -> Answer:
    """Read an exception of obstore's, which has status and body in its text only."""
    text = str(error).partition(_DEBUG)[0]
    status = _STATUS.search(text)
    shown = re.sub(r"<\?xml.*", "", text, flags=re.DOTALL)
    shown = re.sub(r"\?\S*X-Amz-\S*", "", " ".join(shown.split()))[:_LONGEST_CHARS]
    code = code_of(text)
    if status is None and not code and _CERTIFICATE.search(str(error)):
        code = UNTRUSTED
    return Answer(int(status[1]) if status else 0, code, shown.rstrip(" :"))


def code_of(text: str) -> str:
    """Give the error code of an XML body; empty when it has none."""
    found = _CODE.search(text)
    return html.unescape(found[1]) if found else ""


def meaning(answer: Answer, key: str, bucket: str) -> StorageError:
    """Give the error of this floor."""
    if answer.code == "NoSuchKey":
        return ObjectMissing(key)
    if answer.code in _FULL or answer.status == 507:
        return StoreFull(f"S3 bucket {bucket}: {answer.text}")
    if (answer.status == 0 and answer.code != UNTRUSTED) or answer.code in _TEMPORARY_CODES or answer.status >= 500:
        return StoreUnavailable(f"S3 bucket {bucket}: {answer.text}", temporary=answer.code != "NotImplemented")
    sentence = _SENTENCES.get(answer.code) or _BY_STATUS.get(answer.status)
    if sentence is not None:
        said = f" ({answer.code})" if answer.code else f" (HTTP {answer.status})"
        return StoreUnavailable(f"S3 bucket {bucket}: {sentence}{said}", temporary=False)
    return StoreUnavailable(f"S3 bucket {bucket}: {answer.text}", temporary=answer.status in _TEMPORARY_STATUSES)
